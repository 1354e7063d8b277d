//! Periodic timers that CRIU would restore disarmed.
//!
//! A timerfd that expires while its owner is frozen stays expired and unread, and the kernel then tells no time to its next expiry: CRIU dumps the value
//! (0, 0), which for `timerfd_settime` means 'off'. After the restore such a timer fires once more and never again (WORKLOADS.md 3.1). One nanosecond
//! instead makes it fire at once and go on.
//!
//! The image is CRIU's `files.img` (`images/fdinfo.proto`, `images/timerfd.proto`): two magic numbers, then entries, each with its length before it. Only
//! the one byte of a zero changes, so nothing in it moves.

use std::ops::Range;

/// `IMG_COMMON_MAGIC` and `FILES_MAGIC` of `criu/include/magic.h`, as they stand in the file.
const MAGIC: [u8; 8] = [0x19, 0x43, 0x56, 0x54, 0x38, 0x31, 0x30, 0x56];

/// `file_entry.tfd`.
const TIMER: u64 = 12;
/// Fields of `timerfd_entry`: seconds and nanoseconds to the next expiry, then those of the interval.
const VALUE: [u64; 2] = [7, 8];
const INTERVAL: [u64; 2] = [9, 10];

/// The same image with every expired periodic timer armed.
pub(super) fn rearm(image: &[u8]) -> Result<Vec<u8>, String> {
    if !image.starts_with(&MAGIC) {
        return Err("does not begin as an image of CRIU's files does".to_owned());
    }
    let mut mended = image.to_vec();
    let mut at = MAGIC.len();
    while at < image.len() {
        let length = image.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes).ok_or_else(broken)?;
        let entry = at + 4..(at + 4).checked_add(length as usize).filter(|end| *end <= image.len()).ok_or_else(broken)?;
        at = entry.end;
        for field in fields(image, entry)? {
            if let (TIMER, Value::Bytes(timer)) = field
                && let Some(zero) = expired(image, timer)?
            {
                // The lowest bit of the number, however many bytes its zero takes.
                mended[zero] |= 1;
            }
        }
    }
    Ok(mended)
}

/// Where the nanoseconds of a timer stand whose value is zero and whose interval is not.
fn expired(image: &[u8], timer: Range<usize>) -> Result<Option<usize>, String> {
    let fields = fields(image, timer)?;
    let number = |wanted: u64| {
        fields.iter().rev().find_map(|(field, value)| match value {
            Value::Number { at, number } if *field == wanted => Some((*at, *number)),
            _ => None,
        })
    };
    let [_, nanoseconds] = VALUE.map(&number);
    let is_zero = VALUE.iter().all(|field| number(*field).is_none_or(|(_, number)| number == 0));
    let is_periodic = INTERVAL.iter().any(|field| number(*field).is_some_and(|(_, number)| number != 0));
    if !(is_zero && is_periodic) {
        return Ok(None);
    }
    nanoseconds.map(|(at, _)| Some(at)).ok_or_else(|| "has a timer without a value".to_owned())
}

/// A value of a protobuf message, with its place in the image.
enum Value {
    Number { at: usize, number: u64 },
    Bytes(Range<usize>),
    Fixed,
}

/// The fields of the message that lies in this stretch of the image.
fn fields(image: &[u8], message: Range<usize>) -> Result<Vec<(u64, Value)>, String> {
    let mut found = vec![];
    let mut at = message.start;
    while at < message.end {
        let (key, after) = varint(image, at, message.end)?;
        let (value, next) = match key & 7 {
            0 => {
                let (number, next) = varint(image, after, message.end)?;
                (Value::Number { at: after, number }, next)
            }
            1 => (Value::Fixed, after + 8),
            2 => {
                let (length, start) = varint(image, after, message.end)?;
                let end = usize::try_from(length).ok().and_then(|length| start.checked_add(length)).ok_or_else(broken)?;
                (Value::Bytes(start..end), end)
            }
            5 => (Value::Fixed, after + 4),
            _ => return Err(broken()),
        };
        if next > message.end {
            return Err(broken());
        }
        found.push((key >> 3, value));
        at = next;
    }
    Ok(found)
}

/// A number in base 128, lowest digits first, and where the next thing begins.
fn varint(image: &[u8], start: usize, end: usize) -> Result<(u64, usize), String> {
    let mut number = 0;
    for (index, byte) in image.get(start..end).unwrap_or_default().iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok((number, start + index + 1));
        }
    }
    Err(broken())
}

fn broken() -> String {
    "is damaged".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Timers as CRIU writes them: id, flags, owner, clock, ticks, settime flags, value, interval.
    fn timer(value: [u8; 2], interval: &[u8]) -> Vec<u8> {
        let mut timer = vec![0x08, 5, 0x10, 2, 0x1a, 0, 0x20, 1, 0x28, 1, 0x30, 0, 0x38, value[0], 0x40, value[1]];
        timer.extend(interval);
        timer
    }

    /// An image with these timers between other entries.
    fn image(timers: &[Vec<u8>]) -> Vec<u8> {
        let mut image = MAGIC.to_vec();
        let other = [0x08_u8, 6, 0x10, 3, 0x42, 4, 0x08, 3, 0x38, 0];
        for timer in timers {
            let mut entry = vec![0x08, 17, 0x10, 5, 0x62, u8::try_from(timer.len()).unwrap()];
            entry.extend(timer);
            for entry in [&other[..], &entry] {
                image.extend(u32::try_from(entry.len()).unwrap().to_le_bytes());
                image.extend(entry);
            }
        }
        image
    }

    const SECOND: [u8; 4] = [0x48, 1, 0x50, 0];
    const NEVER: [u8; 4] = [0x48, 0, 0x50, 0];

    #[test]
    fn only_an_expired_periodic_timer_changes_and_only_by_one_nanosecond() {
        let before = image(&[timer([0, 0], &SECOND), timer([0, 7], &SECOND), timer([3, 0], &SECOND), timer([0, 0], &NEVER)]);
        let after = image(&[timer([0, 1], &SECOND), timer([0, 7], &SECOND), timer([3, 0], &SECOND), timer([0, 0], &NEVER)]);
        assert_eq!(rearm(&before).unwrap(), after);
        assert_eq!(rearm(&after).unwrap(), after);
    }

    /// Of `e2e/images/mends.c`, frozen for a second and checkpointed by CRIU 4.2.1: a timer of 0.1 s that has expired and was not read.
    #[test]
    fn a_real_image_changes_in_one_byte() {
        let before = include_bytes!("files.img");
        let after = rearm(before).unwrap();
        let changed: Vec<usize> = (0..before.len()).filter(|at| before[*at] != after[*at]).collect();
        let [at] = changed[..] else { panic!("one byte changes, not {changed:?}") };
        assert_eq!((before.len(), before[at], after[at]), (after.len(), 0, 1));
        assert_eq!(before[at - 3..at + 8], [0x38, 0, 0x40, 0, 0x48, 0, 0x50, 0x80, 0xc2, 0xd7, 0x2f], "vnsec, with an interval of 100000000 ns");
    }

    #[test]
    fn an_interval_of_nanoseconds_counts_too() {
        let interval = [0x48, 0, 0x50, 0x80, 0xc2, 0xd7, 0x2f];
        assert_eq!(rearm(&image(&[timer([0, 0], &interval)])).unwrap(), image(&[timer([0, 1], &interval)]));
    }

    #[test]
    fn what_is_no_such_image_is_refused() {
        let good = image(&[timer([0, 0], &SECOND)]);
        assert!(rearm(b"").is_err());
        assert!(rearm(&good[4..]).is_err());
        for cut in MAGIC.len() + 1..good.len() {
            // An image may end between two entries.
            let whole = cut == MAGIC.len() + 4 + 10;
            assert_eq!(rearm(&good[..cut]).is_err(), !whole, "{cut}");
        }
        let mut wild = good.clone();
        let length = wild.len() - timer([0, 0], &SECOND).len() - 1;
        wild[length] = 0xff;
        assert!(rearm(&wild).is_err());
    }
}
