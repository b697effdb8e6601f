"""The reader of PromQL names that the other tests stand on."""

from tests.telemetry.promql import labels_in, metrics_in


def test_functions_keywords_labels_strings_and_numbers_are_no_metrics() -> None:
    expression = (
        'histogram_quantile(0.95, sum by (le, tier) (rate(a_bucket{x=~"b|c", y!="d{e}"}[5m])))'
        " / on (instance) group_left () sum without (z) (a:b) > 1e3 and absent(other) or"
        " min_over_time(q[5m]) < -0.05 * cap"
    )
    assert metrics_in(expression) == {"a_bucket", "a:b", "other", "q", "cap"}
    assert labels_in(expression) == {"le", "tier", "x", "y", "instance", "z"}
