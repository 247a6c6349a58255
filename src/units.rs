//! Durations and sizes as people write them: `"5m"`, `"1h30m"`, `"64MiB"`.

use std::fmt::Write;
use std::time::Duration;

/// What [`parse_duration`] accepts, for error messages.
pub const DURATION: &str = "a duration such as \"250ms\", \"300s\", \"5m\", \"1h30m\" or \"7d\"";

/// What [`parse_size`] accepts, for error messages.
pub const SIZE: &str = "a size such as \"64MiB\", \"512KiB\" or \"1GB\"";

/// Units in milliseconds, largest first.
const DURATION_UNITS: &[(&str, u64)] =
    &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Units in bytes: binary ones first, so that sizes are shown in those.
const SIZE_UNITS: &[(&str, u64)] = &[
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1000),
    ("B", 1),
];

/// A year: nothing that is configured here lasts longer, and sums of durations stay far from overflow.
const MAX_MILLISECONDS: u64 = 365 * 86_400_000;

/// One or more of `<integer><unit>`, largest unit first.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut units = DURATION_UNITS.iter();
    let mut rest = text;
    let mut total = 0_u64;
    while !rest.is_empty() {
        let (number, unit, after) = next_quantity(rest)?;
        // Each unit at most once, in order.
        let (_, factor) = units.find(|(name, _)| *name == unit)?;
        total = total.checked_add(number.checked_mul(*factor)?)?;
        rest = after;
    }
    (!text.is_empty() && total <= MAX_MILLISECONDS).then(|| Duration::from_millis(total))
}

/// The shortest text that [`parse_duration`] reads as this duration; whole milliseconds.
pub fn show_duration(duration: Duration) -> String {
    let mut left = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if left == 0 {
        return "0s".to_owned();
    }
    // A day as "24h": hours are what most people count such times in.
    let units = if left.is_multiple_of(86_400_000) && left > 86_400_000 {
        DURATION_UNITS
    } else {
        &DURATION_UNITS[1..]
    };
    let mut text = String::new();
    for (unit, factor) in units {
        if left >= *factor {
            // Writing to a String cannot fail.
            let _ = write!(text, "{}{unit}", left / factor);
            left %= factor;
        }
    }
    text
}

/// For a person: the two largest units of a duration, down to seconds.
pub fn show_roughly(duration: Duration) -> String {
    let units = &DURATION_UNITS[..4];
    let mut left = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let largest = units.iter().position(|(_, factor)| left >= *factor).unwrap_or(units.len() - 1);
    let part = |(unit, factor): &(&str, u64)| {
        let number = left / factor;
        left %= factor;
        (number > 0 || *unit == "s").then(|| format!("{number}{unit}"))
    };
    let parts: Vec<String> = units[largest..].iter().take(2).filter_map(part).collect();
    parts.join(" ")
}

/// For a person: a size to one decimal place.
pub fn show_size_roughly(bytes: u64) -> String {
    let binary = &SIZE_UNITS[..3];
    match binary.iter().find(|(_, factor)| bytes >= *factor) {
        Some((unit, factor)) => {
            let tenths = bytes.saturating_mul(10) / factor;
            let decimal = if tenths.is_multiple_of(10) { String::new() } else { format!(".{}", tenths % 10) };
            format!("{}{decimal} {unit}", tenths / 10)
        }
        None => format!("{bytes} B"),
    }
}

/// `<integer><unit>`, or bytes without a unit.
pub fn parse_size(text: &str) -> Option<u64> {
    if let Ok(bytes) = text.parse() {
        return (!text.starts_with('+')).then_some(bytes);
    }
    let (number, unit, after) = next_quantity(text)?;
    let (_, factor) = SIZE_UNITS.iter().find(|(name, _)| *name == unit)?;
    after.is_empty().then(|| number.checked_mul(*factor))?
}

/// The text with the largest unit that is exact.
pub fn show_size(bytes: u64) -> String {
    let fits = SIZE_UNITS.iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    let (unit, factor) = fits.unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / factor)
}

fn next_quantity(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
    let (unit, after) = rest.split_at(letters);
    Some((number.parse().ok()?, unit, after))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_and_shown() {
        let cases = [
            ("300s", 300_000, "5m"),
            ("5m", 300_000, "5m"),
            ("250ms", 250, "250ms"),
            ("24h", 86_400_000, "24h"),
            ("1d", 86_400_000, "24h"),
            ("7d", 604_800_000, "7d"),
            ("1h30m", 5_400_000, "1h30m"),
            ("1m1s1ms", 61_001, "1m1s1ms"),
            ("0s", 0, "0s"),
            ("0ms", 0, "0s"),
        ];
        for (text, milliseconds, shown) in cases {
            let duration = parse_duration(text).unwrap();
            assert_eq!(duration, Duration::from_millis(milliseconds), "{text}");
            assert_eq!(show_duration(duration), shown);
        }
    }

    #[test]
    fn anything_else_is_no_duration() {
        for text in [
            "",
            "5",
            "m",
            "5 m",
            "5m ",
            "-5m",
            "+5m",
            "1.5s",
            "5x",
            "1s1m",
            "1s1s",
            "366d",
            "99999999999999999999s",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_read_and_shown() {
        let cases = [
            ("64MiB", 64 << 20, "64MiB"),
            ("4096B", 4096, "4KiB"),
            ("10MB", 10_000_000, "10MB"),
            ("7", 7, "7B"),
            ("0", 0, "0B"),
        ];
        for (text, bytes, shown) in cases {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
            assert_eq!(show_size(bytes), shown);
        }
        for text in
            ["", "MiB", "64 MiB", "64mib", "+7", "-7", "1.5MiB", "99999999999GiB", "64MiBs", "64MiB4KiB"]
        {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn a_person_is_shown_the_largest_units() {
        let cases = [
            (0, "0s"),
            (999, "0s"),
            (59_000, "59s"),
            (60_000, "1m 0s"),
            (3_600_000, "1h"),
            (3_725_000, "1h 2m"),
            (90_061_000, "1d 1h"),
        ];
        for (milliseconds, shown) in cases {
            assert_eq!(show_roughly(Duration::from_millis(milliseconds)), shown);
        }
        for (bytes, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (64 << 20, "64 MiB"),
            (5 << 40, "5120 GiB"),
        ] {
            assert_eq!(show_size_roughly(bytes), shown);
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(milliseconds in 0..=MAX_MILLISECONDS, bytes: u64) {
            let duration = Duration::from_millis(milliseconds);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Some(duration));
            prop_assert_eq!(parse_size(&show_size(bytes)), Some(bytes));
        }

        #[test]
        fn reading_never_panics(text in ".{0,30}") {
            parse_duration(&text);
            parse_size(&text);
        }
    }
}
