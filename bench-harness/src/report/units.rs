//! Numbers as people read them: three significant digits and a unit.

/// Three significant digits, without an exponent between 1e-4 and 1e7.
pub(crate) fn si(value: f64) -> String {
    // 9.999 is 10.0, not 10.00: digits are counted once it is rounded
    let value = rounded(value);
    let size = value.abs();
    match size {
        _ if value == 0.0 => "0".into(),
        _ if !value.is_finite() => "-".into(),
        _ if !(1e-4..1e7).contains(&size) => format!("{value:.2e}"),
        _ => {
            let digits = (2 - size.log10().floor() as i32).max(0) as usize;
            format!("{value:.digits$}")
        }
    }
}

/// A time in nanoseconds.
pub(crate) fn duration_ns(ns: f64) -> String {
    scaled(ns, &[(1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns")])
}

/// An energy in joules.
pub(crate) fn joules(joules: f64) -> String {
    scaled(joules, &[(1e3, "kJ"), (1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"), (1e-9, "nJ")])
}

/// A number of parameters or operations.
pub(crate) fn count(n: u64) -> String {
    if n < 1000 {
        return n.to_string();
    }
    scaled(n as f64, &[(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")]).replace(' ', "")
}

/// A size in bytes.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [(f64, &str); 4] = [
        ((1u64 << 40) as f64, "TiB"),
        ((1u64 << 30) as f64, "GiB"),
        ((1u64 << 20) as f64, "MiB"),
        (1024.0, "KiB"),
    ];
    if n < 1024 {
        return format!("{n} B");
    }
    scaled(n as f64, &UNITS)
}

/// To three significant digits, as far as they lie behind the point: whole numbers keep all of theirs.
fn rounded(value: f64) -> f64 {
    let text = if value.abs() < 1e3 { format!("{value:.2e}") } else { return value };
    text.parse().unwrap_or(value)
}

fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    let value = rounded(value);
    let found = units.iter().find(|(size, _)| value.abs() >= *size).or(units.last());
    found.map_or_else(|| si(value), |(size, unit)| format!("{} {unit}", si(value / size)))
}

/// A share, such as `0.4 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_the_right_unit() {
        let cases = [(0.0, "0"), (1234.5, "1234"), (12.345, "12.3"), (0.012345, "0.0123"), (1e-9, "1.00e-9")];
        for (value, text) in cases {
            assert_eq!(si(value), text);
        }
        assert_eq!(duration_ns(1_500.0), "1.50 µs");
        assert_eq!(duration_ns(0.25), "0.250 ns");
        assert_eq!(joules(0.0123), "12.3 mJ");
        assert_eq!(count(1_235_814_400), "1.24B");
        assert_eq!(bytes(24 << 30), "24.0 GiB");
        assert_eq!(percent(0.0042), "0.4 %");
        assert_eq!((si(9.999), si(0.09999), si(99.96)), ("10.0".into(), "0.100".into(), "100".into()));
        assert_eq!((duration_ns(999.96), joules(0.99999)), ("1.00 µs".into(), "1.00 J".into()));
        assert_eq!((si(1234.5), si(f64::NAN), si(-9.999)), ("1234".into(), "-".into(), "-10.0".into()));
    }
}
