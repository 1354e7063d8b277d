//! Where errors are told: on stderr, and in the log that containerd reads a runtime's last error from.

use std::{fs, io::Write as _, time::SystemTime};

use super::arguments::Call;

/// Says why a call fails. The last such line in the log is the one that `kubectl describe` shows.
pub(super) fn failure(call: Option<&Call<'_>>, problem: &str) {
    let message = format!("drover: {problem}");
    eprintln!("{message}");
    let Some((call, path)) = call.and_then(|call| Some((call, call.log?))) else { return };
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let line = if call.is_json {
        serde_json::json!({"level": "error", "msg": message, "time": time}).to_string()
    } else {
        format!("time={time:?} level=error msg={message:?}")
    };
    // Its failure has been told on stderr; a log that cannot be written changes nothing about it.
    let log = fs::OpenOptions::new().append(true).create(true).open(path);
    let _ = log.and_then(|mut log| log.write_all(format!("{line}\n").as_bytes()));
}
