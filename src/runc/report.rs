//! Where things are told: errors on stderr, and all in the log that containerd reads a runtime's last error from.

use std::{fs, io::Write as _, time::SystemTime};

use super::arguments::Call;

/// Says why a call fails. The last such line in the log is the one that `kubectl describe` shows.
pub(super) fn failure(call: Option<&Call<'_>>, problem: &str) {
    eprintln!("drover: {problem}");
    if let Some(call) = call {
        write(call, "error", problem);
    }
}

/// Says what somebody may want to know of a call that goes on; in the log alone, since what a create says on stderr is in the container's own log.
pub(super) fn warning(call: &Call<'_>, remark: &str) {
    write(call, "warning", remark);
}

fn write(call: &Call<'_>, level: &str, message: &str) {
    let Some(path) = call.log else { return };
    let message = format!("drover: {message}");
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let line = if call.is_json {
        serde_json::json!({"level": level, "msg": message, "time": time}).to_string()
    } else {
        format!("time={time:?} level={level} msg={message:?}")
    };
    // A log that cannot be written changes nothing about the call.
    let log = fs::OpenOptions::new().append(true).create(true).open(path);
    let _ = log.and_then(|mut log| log.write_all(format!("{line}\n").as_bytes()));
}
