"""What finished runs show: tables, pictures and a verdict on every gain, in one offline page.

> python -m speechbrain_mam.report RUN_DIR ... --out DIR

is the same as ``speechbrain-mam report``.
"""

from speechbrain_mam.report.build import Report, make_report, write_report

__all__ = ["Report", "make_report", "write_report"]
