"""The sum of the points that were tried."""


def pytest_terminal_summary(terminalreporter):
    """How many points each command was disturbed at, and how many of the trials held."""
    rows = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for key, value in getattr(report, "user_properties", []):
                if key == "points":
                    name = report.nodeid.split("[")[-1].rstrip("]")
                    rows[name] = (value, outcome)
    if rows:
        terminalreporter.section("points")
        for name, (points, outcome) in sorted(rows.items()):
            terminalreporter.write_line(f"{points:5d}  {name:28} {outcome}")
        terminalreporter.write_line(f"{sum(points for points, _ in rows.values()):5d}  in all")
