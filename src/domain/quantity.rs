//! Quantities as Kubernetes writes them.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Bytes of a quantity of memory: a whole number, or a decimal fraction with a unit.
#[must_use]
pub fn bytes(Quantity(text): &Quantity) -> Option<u64> {
    const UNITS: [(&str, u64); 10] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
    ];
    let (number, unit) = UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit))).unwrap_or((text, 1));
    if let Ok(whole) = number.parse::<u64>() {
        return Some(whole.saturating_mul(unit));
    }
    let (whole, fraction) = number.split_once('.')?;
    let digits = u32::try_from(fraction.len()).ok().filter(|digits| *digits <= 9)?;
    let part = fraction.parse::<u64>().ok()?.saturating_mul(unit) / 10u64.pow(digits);
    Some(whole.parse::<u64>().ok()?.saturating_mul(unit).saturating_add(part))
}

/// Thousandths of a quantity of CPU: a number, or one of thousandths (`250m`).
#[must_use]
pub fn millis(Quantity(text): &Quantity) -> Option<u64> {
    match text.strip_suffix('m') {
        Some(millis) => millis.parse().ok(),
        None => bytes(&Quantity(format!("{text}k"))),
    }
}

/// Bytes as a person reads them, rounded down.
#[must_use]
pub fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_every_unit() {
        let read = |text: &str| bytes(&Quantity(text.to_owned()));
        assert_eq!(read("64Mi"), Some(64 << 20));
        assert_eq!(read("1.5Gi"), Some(3 << 29));
        assert_eq!(read("128974848"), Some(128_974_848));
        assert_eq!(read("129M"), Some(129_000_000));
        let cpu = |text: &str| millis(&Quantity(text.to_owned()));
        assert_eq!((cpu("4"), cpu("250m"), cpu("1.5"), cpu("much")), (Some(4_000), Some(250), Some(1_500), None));
        assert_eq!((read("a lot"), read("1.x"), read("")), (None, None, None));
    }
}
