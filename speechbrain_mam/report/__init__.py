"""What finished runs show: tables, pictures and a verdict on every gain, in one offline page.

``speechbrain-mam report`` writes it. It may import atomic, errors and version.
"""

from speechbrain_mam.report.build import Report, make_report, write_report

__all__ = ["Report", "make_report", "write_report"]
