//! Amounts as Kubernetes writes them: `500m`, `8`, `64Gi`, `64GiB`, `40G`.

use std::fmt;

/// Why a text is no amount; `hint` is what would work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadQuantity {
    /// What was expected.
    pub expected: &'static str,
    /// What to write instead.
    pub hint: Option<String>,
}

impl fmt::Display for BadQuantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.expected)?;
        self.hint.iter().try_for_each(|hint| write!(f, "; {hint}"))
    }
}

impl std::error::Error for BadQuantity {}

/// Bytes of `64Gi`, `64GiB`, `40G`, `512M`, `1024`. A unitless number counts bytes only when it is at least 1 Mi,
/// for `memory: 40` is a mistake, not forty bytes.
///
/// # Errors
/// When the text is no number, has an unknown unit, overflows, or lacks a unit.
pub fn bytes(text: &str) -> Result<u64, BadQuantity> {
    const EXPECTED: &str = "bytes with a unit, such as 64GiB or 500M";
    let bad = |hint: Option<String>| BadQuantity { expected: EXPECTED, hint };
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..split], text[split..].trim());
    let factor: u64 = match unit {
        "" | "B" => 1,
        "k" | "K" | "KB" | "kB" => 1_000,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        "T" | "TB" => 1_000_000_000_000,
        "Ki" | "KiB" => 1 << 10,
        "Mi" | "MiB" => 1 << 20,
        "Gi" | "GiB" => 1 << 30,
        "Ti" | "TiB" => 1 << 40,
        "m" => {
            return Err(bad(Some(format!("`m` means thousandths; write {number}M or {number}Mi"))));
        }
        "g" | "gb" | "gib" => return Err(bad(Some(format!("write {number}GiB")))),
        _ => return Err(bad(None)),
    };
    let value = scaled(number, factor).ok_or_else(|| bad(None))?;
    if unit.is_empty() && value < 1 << 20 && value != 0 {
        return Err(bad(Some(format!("write {number}GiB"))));
    }
    Ok(value)
}

/// Thousandths of a core of `500m`, `8`, `1.5`.
///
/// # Errors
/// When the text is neither, or has a unit that is none of CPU's.
pub fn cpu_millis(text: &str) -> Result<u64, BadQuantity> {
    let bad = || BadQuantity { expected: "cores, such as 8, 1.5 or 500m", hint: None };
    let text = text.trim();
    match text.strip_suffix('m') {
        Some(millis) => millis.parse().map_err(|_| bad()),
        None => scaled(text, 1000).ok_or_else(bad),
    }
}

/// `number` × `factor` without floating point, so that every replica reads the same amount.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let whole = u128::from(whole.parse::<u64>().ok()?) * u128::from(factor);
    let part = if fraction.is_empty() {
        0
    } else {
        u128::from(fraction.parse::<u64>().ok()?) * u128::from(factor) / 10u128.pow(fraction.len() as u32)
    };
    u64::try_from(whole + part).ok()
}

/// Milliseconds of `500ms`, `90s`, `5m`, `1h30m`, `2d`. A bare number has no unit and is refused.
///
/// # Errors
/// When the text is no such sum, or overflows.
pub fn duration_ms(text: &str) -> Result<u64, BadQuantity> {
    let bad = |hint: Option<String>| BadQuantity { expected: "a time with a unit, such as 90s, 5m or 1h30m", hint };
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad(Some(format!("write {text}s"))));
    }
    let (mut rest, mut total) = (text, 0u64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(|| bad(None))?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let factor = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad(None)),
        };
        let part = scaled(number, factor).ok_or_else(|| bad(None))?;
        total = total.checked_add(part).ok_or_else(|| bad(None))?;
        rest = after;
    }
    if text.is_empty() { Err(bad(None)) } else { Ok(total) }
}

/// Bytes as a file has them, exactly: `64GiB`, `40000000000B`.
pub fn write_bytes(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let exact = units.into_iter().find(|(shift, _)| bytes != 0 && bytes.is_multiple_of(1 << shift));
    exact.map_or_else(|| format!("{bytes}B"), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// Bytes for people: `24.0 GiB`, `512 B`.
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Cores for people: `8`, `1.5`.
pub fn show_cpu(millis: u64) -> String {
    if millis.is_multiple_of(1000) { (millis / 1000).to_string() } else { format!("{}", millis as f64 / 1000.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_kubernetes_writes_them() {
        for (text, want) in [
            ("64Gi", 64 << 30),
            ("64GiB", 64 << 30),
            ("1.5Gi", 3 << 29),
            ("40G", 40_000_000_000),
            ("0", 0),
            ("2097152", 2 << 20),
        ] {
            assert_eq!(bytes(text), Ok(want), "{text}");
        }
        for text in ["", "40", "Gi", "-1Gi", "1e3", "64Gx", "99999999999Ti", "1.Gi.2", "4m", "4gb"] {
            assert!(bytes(text).is_err(), "{text} was taken");
        }
        assert_eq!(bytes("40").unwrap_err().hint.as_deref(), Some("write 40GiB"));
        for bytes_exact in [0, 1, 1023, 1 << 20, 40_000_000_000, 3 << 29, u64::MAX] {
            assert_eq!(bytes(&write_bytes(bytes_exact)), Ok(bytes_exact), "{bytes_exact}");
        }
        for (text, want) in [("500ms", 500), ("90s", 90_000), ("1h30m", 5_400_000), ("1.5d", 129_600_000)] {
            assert_eq!(duration_ms(text), Ok(want), "{text}");
        }
        for text in ["", "90", "s", "1x", "-1s", "1h30", "99999999999999999999d"] {
            assert!(duration_ms(text).is_err(), "{text} was taken");
        }
        for (text, want) in [("8", 8000), ("500m", 500), ("1.5", 1500), ("0.25", 250)] {
            assert_eq!(cpu_millis(text), Ok(want), "{text}");
        }
        for text in ["", "x", "-1", "8 cores", "1.5m"] {
            assert!(cpu_millis(text).is_err(), "{text} was taken");
        }
    }
}
