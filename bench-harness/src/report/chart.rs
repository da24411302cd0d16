//! Charts of text: horizontal bars behind labels, for where a picture says more than a column of a table.

use crate::compare::row::tokens_per_s;
use perjoule_record::{Record, Workload};

use super::units::si;

/// Eighths of a block, from one to seven.
const EIGHTHS: [&str; 7] = ["▏", "▎", "▍", "▌", "▋", "▊", "▉"];
/// Longest label.
const LABEL: usize = 46;

/// A chart: a title, and a bar for each line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chart {
    title: String,
    rows: Vec<Row>,
    /// The value of a full bar.
    top: f64,
}

#[derive(Debug, Clone, PartialEq)]
struct Row {
    label: String,
    value: f64,
    /// The value with its unit.
    text: String,
}

impl Chart {
    /// A chart of what has a value; `None` for fewer than two bars, which need no picture.
    fn new(title: String, rows: Vec<Row>, top: Option<f64>) -> Option<Self> {
        let rows: Vec<Row> =
            rows.into_iter().filter(|row| row.value.is_finite() && row.value >= 0.0).collect();
        let most = rows.iter().map(|row| row.value).fold(top.unwrap_or(0.0), f64::max);
        (rows.len() > 1 && most > 0.0).then_some(Chart { title, rows, top: most })
    }

    /// The chart in lines of at most `width` columns, the title first; in ASCII where blocks cannot be shown.
    pub(crate) fn lines(&self, width: usize, unicode: bool) -> Vec<String> {
        let length = |text: &String| text.chars().count();
        let most = |of: fn(&Row) -> &String| self.rows.iter().map(|row| length(of(row))).max().unwrap_or(0);
        let text = most(|row| &row.text);
        // labels give way to bars, down to a length at which they still tell something
        let label = most(|row| &row.label).min(LABEL).min(width.saturating_sub(text + 14).max(8));
        let bar = width.saturating_sub(label + text + 4).max(4);
        let mut lines = vec![self.title.clone()];
        for row in &self.rows {
            let name = clip(&row.label, label);
            let drawn = draw(row.value / self.top, bar, unicode);
            lines.push(format!(" {name:<label$}  {drawn:<bar$} {:>text$}", row.text));
        }
        lines
    }
}

/// The end of a name tells it from others as often as its start: the middle goes.
fn clip(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let head = width.saturating_sub(2) / 2;
    let tail = width.saturating_sub(2 + head);
    text.chars().take(head).chain("..".chars()).chain(text.chars().skip(length - tail)).collect()
}

/// A bar of `share` of `width`; what is not nothing is seen.
fn draw(share: f64, width: usize, unicode: bool) -> String {
    let eighths = (share.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize;
    let eighths = if share > 0.0 { eighths.max(1) } else { eighths };
    match unicode {
        true => "█".repeat(eighths / 8) + (eighths % 8).checked_sub(1).map_or("", |i| EIGHTHS[i]),
        false => "#".repeat(eighths.div_ceil(8)),
    }
}

fn text(field: &Option<String>) -> &str {
    field.as_deref().unwrap_or("-")
}

/// Charts of kernels: their share of the roof, and the rates of an op over its shapes.
pub(crate) fn kernels(records: &[Record]) -> Vec<Chart> {
    let usable: Vec<&Record> = records.iter().filter(|record| record.valid).collect();
    let mut charts = Vec::new();
    let all_alike = |of: fn(&Workload) -> (&str, &str)| {
        usable.windows(2).all(|pair| of(&pair[0].workload) == of(&pair[1].workload))
    };
    let one_shape = all_alike(|w| (text(&w.op), text(&w.shape)));
    let one_dtype = all_alike(|w| (text(&w.dtype), ""));
    // one op by several kernels: they are told apart by their names
    let mut tasks: Vec<_> =
        usable.iter().map(|r| (&r.workload.op, &r.workload.dtype, &r.workload.shape)).collect();
    tasks.sort_unstable();
    let by_kernel = tasks.windows(2).any(|pair| pair[0] == pair[1]);
    let shape = |w: &Workload| text(&w.shape).trim_start_matches("b=1,").trim_end_matches(",b=1").to_owned();
    let label = |w: &Workload| match (by_kernel, one_shape, one_dtype) {
        (true, true, true) => text(&w.kernel).to_owned(),
        (true, true, false) => format!("{} {}", text(&w.dtype), text(&w.kernel)),
        (true, false, _) => format!("{} {} {}", text(&w.dtype), shape(w), text(&w.kernel)),
        _ => format!("{} {} {}", text(&w.op), text(&w.dtype), shape(w)),
    };
    let roofs = usable.iter().filter_map(|record| {
        let value = record.roof.roof_fraction?;
        Some(Row { label: label(&record.workload), value, text: format!("{:.0} %", 100.0 * value) })
    });
    charts.extend(Chart::new("Share of the roof".into(), roofs.collect(), Some(1.0)));

    let mut ops: Vec<&str> = usable.iter().filter_map(|record| record.workload.op.as_deref()).collect();
    ops.sort_unstable();
    ops.dedup();
    for op in ops {
        let of_op = usable.iter().filter(|record| record.workload.op.as_deref() == Some(op));
        let mut rows: Vec<(String, Row)> = Vec::new();
        for record in of_op {
            let Some(value) = record.timing.gflops.filter(|rate| *rate > 0.0) else { continue };
            let w = &record.workload;
            let row = Row {
                label: format!("{} {}", text(&w.dtype), shape(w)),
                value,
                text: format!("{} GFLOP/s", si(value)),
            };
            // of several kernels of one shape the fastest
            match rows.iter_mut().find(|(_, other)| other.label == row.label) {
                Some((_, other)) if other.value < value => *other = row,
                Some(_) => {}
                None => rows.push((shape(w), row)),
            }
        }
        if rows.windows(2).any(|pair| pair[0].0 != pair[1].0) {
            let rows = rows.into_iter().map(|(_, row)| row).collect();
            charts.extend(Chart::new(format!("GFLOP/s of {op} by shape"), rows, None));
        }
    }
    charts
}

/// Charts of tokens per second over what was swept: lengths, depths, sequences.
pub(crate) fn tokens(records: &[Record]) -> Vec<Chart> {
    type Axis = (&'static str, fn(&Workload) -> Option<u64>);
    const AXES: [Axis; 4] = [
        ("prompt length", |w| w.n_prompt),
        ("tokens generated", |w| w.n_gen),
        ("depth", |w| w.n_depth),
        ("sequences side by side", |w| w.n_parallel),
    ];
    let generates = |record: &Record| record.workload.n_gen.is_some_and(|n| n > 0);
    let chart = |(name, decode): (&str, bool)| {
        let of: Vec<&Record> = records.iter().filter(|r| r.valid && generates(r) == decode).collect();
        let varies =
            |axis: &Axis| of.windows(2).any(|pair| axis.1(&pair[0].workload) != axis.1(&pair[1].workload));
        let swept: Vec<&str> = AXES.iter().filter(|axis| varies(axis)).map(|axis| axis.0).collect();
        let rows = of.iter().filter_map(|record| {
            let value = tokens_per_s(record)?.value;
            let mut label = record.workload.token_test()?;
            if let Some(n) = record.workload.n_parallel.filter(|n| *n > 1) {
                label.push_str(&format!(" x{n}"));
            }
            Some(Row { label, value, text: format!("{} tokens/s", si(value)) })
        });
        let rows: Vec<Row> = rows.collect();
        (!swept.is_empty())
            .then(|| Chart::new(format!("tokens/s of {name} by {}", swept.join(" and ")), rows, None))
            .flatten()
    };
    [("prefill", false), ("decode", true)].into_iter().filter_map(chart).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use perjoule_record::{Environment, Kind};

    fn kernel(dtype: &str, shape: &str, name: &str, gflops: f64, roof: Option<f64>) -> Record {
        let mut record = Record::new(Kind::Kernel, &Environment::default());
        let w = &mut record.workload;
        (w.op, w.dtype) = (Some("matmul".into()), Some(dtype.into()));
        (w.shape, w.kernel) = (Some(shape.into()), Some(name.into()));
        (record.timing.gflops, record.roof.roof_fraction) = (Some(gflops), roof);
        record
    }

    fn decode(n_parallel: u64, n_depth: u64, rate: f64) -> Record {
        let mut record = Record::new(Kind::Tokens, &Environment::default());
        let w = &mut record.workload;
        (w.n_prompt, w.n_gen, w.n_depth, w.n_parallel) = (Some(0), Some(16), Some(n_depth), Some(n_parallel));
        record.timing.avg_ts = Some(rate);
        record
    }

    fn bar(line: &str) -> usize {
        line.chars().filter(|c| *c == '█' || *c == '#').count()
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let records = [
            kernel("f32", "m=1,n=8,k=8", "a", 10.0, Some(0.5)),
            kernel("f32", "m=64,n=8,k=8", "a", 100.0, Some(1.0)),
            kernel("bf16", "m=64,n=8,k=8", "b", 50.0, None),
        ];
        let charts = kernels(&records);
        assert_eq!(charts.len(), 2);
        let roof = charts[0].lines(92, true);
        assert_eq!(roof.len(), 3, "what has no roof is left out");
        assert!(roof[1].contains("matmul f32 m=1,n=8,k=8") && roof[1].ends_with("50 %"), "{roof:?}");
        assert_eq!(bar(&roof[1]), bar(&roof[2]) / 2);
        let rates = charts[1].lines(92, true);
        assert!(
            rates[0].contains("GFLOP/s of matmul by shape") && rates[1].ends_with("10.0 GFLOP/s"),
            "{rates:?}"
        );
        assert!(bar(&rates[2]).abs_diff(10 * bar(&rates[1])) <= 10, "{rates:?}");
    }

    #[test]
    fn every_line_fits_and_ascii_is_ascii() {
        let long = format!("m=1,n=8,{}", "k=8,".repeat(40));
        let records =
            [kernel("f32", &long, "a", 1.0, Some(2.0)), kernel("f32", "m=2", "a", 1e-9, Some(1e-9))];
        for chart in kernels(&records) {
            for width in [0, 20, 60, 92] {
                for line in &chart.lines(width, false)[1..] {
                    assert!(line.is_ascii() && line.chars().count() <= width.max(34), "{width}: {line}");
                }
            }
            assert!(chart.lines(92, true)[2].contains('▏'), "what is not nothing is seen");
        }
    }

    #[test]
    fn nothing_is_drawn_of_one_line_or_of_wrong_results() {
        let one = [kernel("f32", "m=1", "a", 1.0, Some(0.5))];
        assert!(kernels(&one).is_empty() && kernels(&[]).is_empty() && tokens(&[]).is_empty());
        let mut wrong = one.clone();
        wrong[0].invalidate("wrong result");
        assert!(kernels(&[one[0].clone(), wrong[0].clone()]).is_empty());
        let strange =
            [kernel("f32", "m=1", "a", f64::NAN, Some(f64::NAN)), kernel("f32", "m=2", "a", 0.0, Some(0.0))];
        assert!(kernels(&strange).is_empty());
        assert!(tokens(&[decode(1, 0, 5.0), decode(1, 0, 6.0)]).is_empty(), "nothing was swept");
    }

    #[test]
    fn several_rows_of_one_op_are_told_apart_by_name() {
        let records =
            [kernel("f32", "m=1", "fast", 9.0, Some(0.9)), kernel("f32", "m=1", "slow", 1.0, Some(0.1))];
        let charts = kernels(&records);
        assert_eq!(charts.len(), 1, "one shape has no chart over shapes");
        let lines = charts[0].lines(60, true);
        assert!(lines[1].starts_with(" fast ") && lines[2].starts_with(" slow "), "{lines:?}");
        let both = [&records[..], &[kernel("bf16", "m=1", "slow", 2.0, Some(0.2))]].concat();
        let lines = kernels(&both)[0].lines(60, true);
        assert!(lines[2].starts_with(" f32 slow ") && lines[3].starts_with(" bf16 slow "), "{lines:?}");
    }

    #[test]
    fn sweeps_of_tokens_name_their_axis() {
        let charts = tokens(&[decode(1, 0, 5.0), decode(4, 0, 15.0), decode(16, 0, 30.0)]);
        let lines = charts[0].lines(92, true);
        assert_eq!(lines[0], "tokens/s of decode by sequences side by side");
        assert!(lines[3].contains("tg16 x16") && lines[3].ends_with("30.0 tokens/s"), "{lines:?}");
        let depth = tokens(&[decode(1, 0, 5.0), decode(1, 512, 4.0)]);
        assert!(depth[0].lines(92, true)[0].ends_with("by depth"));
    }
}
