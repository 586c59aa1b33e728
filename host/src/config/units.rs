//! Sizes and durations as people type them.

use std::time::Duration;

use crate::domain::ByteSize;

/// More than any machine has: what is above it is a slip.
const LARGEST_SIZE: u64 = 1 << 50;
/// Longer than any host runs unattended.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// `20GiB`, `512MB`, `1.5 GiB` or a plain number of bytes.
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
pub fn parse_size(text: &str) -> Result<ByteSize, String> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        "pib" => 1 << 50,
        "eib" => 1 << 60,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "pb" => 1_000_000_000_000_000,
        "eb" => 1_000_000_000_000_000_000,
        _ => return Err(format!("has the unknown unit `{unit}`")),
    };
    match number.times(factor) {
        Some(bytes) if bytes <= LARGEST_SIZE => Ok(ByteSize(bytes)),
        _ => Err("is more than any machine has".to_owned()),
    }
}

/// `60s`, `5m`, `1h`, `500ms`, a plain number of seconds, or `forever` (`None`).
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
pub fn parse_duration(text: &str) -> Result<Option<Duration>, String> {
    if text.trim() == "forever" {
        return Ok(None);
    }
    let (number, unit) = split(text)?;
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(format!("has the unknown unit `{unit}`")),
    };
    match number.times(milliseconds).map(Duration::from_millis) {
        Some(duration) if duration <= LONGEST => Ok(Some(duration)),
        _ => Err("is longer than a year".to_owned()),
    }
}

/// Most requests of a rate.
const LARGEST_RATE: u32 = 1_000_000;

/// `60/min`, `5/s`, `1000/h`: so many requests in so much time.
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
pub(super) fn parse_rate(text: &str) -> Result<(u32, Duration), String> {
    let (count, unit) = text.split_once('/').ok_or("is not so many requests in so much time")?;
    let seconds = match unit.trim() {
        "s" | "sec" | "second" => 1,
        "m" | "min" | "minute" => 60,
        "h" | "hour" => 3_600,
        "d" | "day" => 86_400,
        other => return Err(format!("has the unknown time `{other}`")),
    };
    match count.trim().parse() {
        Ok(count) if (1..=LARGEST_RATE).contains(&count) => Ok((count, Duration::from_secs(seconds))),
        _ => Err(format!("must allow a whole number of requests, from 1 to {LARGEST_RATE}")),
    }
}

/// A decimal number, exact.
struct Number {
    whole: u64,
    fraction: u64,
    scale: u64,
}

impl Number {
    fn times(&self, factor: u64) -> Option<u64> {
        let fraction = u128::from(self.fraction) * u128::from(factor) / u128::from(self.scale);
        self.whole.checked_mul(factor)?.checked_add(u64::try_from(fraction).ok()?)
    }
}

fn split(text: &str) -> Result<(Number, &str), String> {
    let text = text.trim();
    if text.starts_with('-') {
        return Err("is negative".to_owned());
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let malformed = || "is not a number with a unit".to_owned();
    if whole.is_empty() || fraction.len() > 9 || fraction.contains('.') {
        return Err(malformed());
    }
    let number = Number {
        whole: whole.parse().map_err(|_| "is absurdly large".to_owned())?,
        fraction: if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| malformed())? },
        scale: 10u64.pow(u32::try_from(fraction.len()).unwrap_or(0)),
    };
    Ok((number, unit.trim()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{parse_duration, parse_rate, parse_size};

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("1073741824", Some(1 << 30)),
            ("20GiB", Some(20 << 30)),
            ("20gib", Some(20 << 30)),
            ("512 MB", Some(512_000_000)),
            ("1.5GiB", Some(3 << 29)),
            ("-1GiB", None),
            ("20G", None),
            ("GiB", None),
            ("1.2.3GiB", None),
            ("2000TiB", None),
            ("99999999999999999999", None),
            ("", None),
        ] {
            assert_eq!(parse_size(text).ok().map(|size| size.0), bytes, "{text}");
        }
    }

    #[test]
    fn rates() {
        for (text, rate) in [
            ("60/min", Some((60, 60))),
            (" 5 / s ", Some((5, 1))),
            ("1000/h", Some((1000, 3600))),
            ("1/d", Some((1, 86_400))),
            ("60", None),
            ("0/min", None),
            ("-1/min", None),
            ("1.5/min", None),
            ("1000001/s", None),
            ("60/fortnight", None),
            ("/min", None),
            ("60/", None),
            ("60/min/min", None),
        ] {
            let found = parse_rate(text).ok().map(|(requests, per)| (requests, per.as_secs()));
            assert_eq!(found, rate, "{text}");
        }
    }

    #[test]
    fn durations() {
        let seconds = |s| Some(Some(Duration::from_secs(s)));
        for (text, duration) in [
            ("0", seconds(0)),
            ("60", seconds(60)),
            ("60s", seconds(60)),
            ("5m", seconds(300)),
            ("1.5h", seconds(5400)),
            ("500ms", Some(Some(Duration::from_millis(500)))),
            ("forever", Some(None)),
            ("never", None),
            ("-5s", None),
            ("5 parsecs", None),
            ("400d", None),
        ] {
            assert_eq!(parse_duration(text).ok(), duration, "{text}");
        }
    }
}
