//! Text, as Prometheus has read it from the beginning, and as OpenMetrics has it: that with exemplars.

use std::{fmt::Write as _, time::UNIX_EPOCH};

use super::{PREFIX, bounds};
use crate::export::series::{Definition, Exemplar, Series};

/// OpenMetrics allows no more in an exemplar.
const EXEMPLAR_MAX: usize = 128;

pub(super) fn encode(families: &[(&'static Definition, Vec<Series>)], open: bool) -> String {
    let mut out = String::new();
    for (definition, series) in families {
        let Definition {
            name,
            help,
            histogram,
            ..
        } = definition;
        // OpenMetrics names families of counters without what their series end with.
        let total = if *histogram { "" } else { "_total" };
        let family = if open { "" } else { total };
        let kind = if *histogram { "histogram" } else { "counter" };
        _ = writeln!(out, "# HELP {PREFIX}{name}{family} {help}");
        _ = writeln!(out, "# TYPE {PREFIX}{name}{family} {kind}");
        for one in series {
            match histogram {
                true => buckets(&mut out, definition, one),
                false => {
                    line(&mut out, definition, total, one, None);
                    _ = write!(out, " {}", one.point.sum as f64 * definition.scale);
                    if open && let Some(exemplar) = &one.point.exemplar {
                        self::exemplar(&mut out, exemplar);
                    }
                    out.push('\n');
                }
            }
        }
    }
    if open {
        out.push_str("# EOF\n");
    }
    out
}

fn buckets(out: &mut String, definition: &Definition, series: &Series) {
    let Some(buckets) = &series.point.buckets else {
        return;
    };
    let mut sum = 0;
    let bounds = bounds()
        .map(|bound| bound.to_string())
        .chain(["+Inf".to_owned()]);
    for (count, bound) in buckets.iter().zip(bounds) {
        sum += count;
        line(out, definition, "_bucket", series, Some(&bound));
        _ = writeln!(out, " {sum}");
    }
    line(out, definition, "_sum", series, None);
    _ = writeln!(out, " {}", series.point.sum as f64 * definition.scale);
    line(out, definition, "_count", series, None);
    _ = writeln!(out, " {sum}");
}

/// A series' name and labels.
fn line(
    out: &mut String,
    definition: &Definition,
    suffix: &str,
    series: &Series,
    bound: Option<&str>,
) {
    let Series {
        namespace,
        pod,
        values,
        ..
    } = series;
    _ = write!(out, "{PREFIX}{}{suffix}{{", definition.name);
    label(out, "namespace", namespace);
    out.push(',');
    label(out, "pod", pod);
    for (name, value) in definition.labels.iter().zip(values) {
        out.push(',');
        label(out, name, value);
    }
    if let Some(bound) = bound {
        out.push(',');
        label(out, "le", bound);
    }
    out.push('}');
}

fn label(out: &mut String, name: &str, value: &str) {
    _ = write!(out, "{name}=\"");
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn exemplar(out: &mut String, exemplar: &Exemplar) {
    let Exemplar { labels, time } = exemplar;
    let length: usize = labels
        .iter()
        .map(|(name, value)| name.len() + value.chars().count())
        .sum();
    if length > EXEMPLAR_MAX {
        return;
    }
    out.push_str(" # {");
    for (index, (name, value)) in labels.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        label(out, name, value);
    }
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    _ = write!(out, "}} 1 {}.{:03}", since.as_secs(), since.subsec_millis());
}
