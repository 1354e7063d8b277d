//! What a call asks of runc, as far as that must be known.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
};

/// runc's global options whose value is an argument of its own.
const VALUED: [&str; 5] = ["--root", "--log", "--log-format", "--criu", "--rootless"];
/// Those that have none.
const SWITCHES: [&str; 2] = ["--debug", "--systemd-cgroup"];

/// One call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call<'a> {
    /// What stands before the command.
    pub globals: &'a [OsString],
    /// The value of `--log`.
    pub log: Option<&'a OsStr>,
    /// Whether that log is made of JSON.
    pub is_json: bool,
    /// `create`, `start` and so on.
    pub command: &'a OsStr,
    /// The last argument.
    pub id: Option<&'a OsStr>,
    /// The value of `--bundle`.
    pub bundle: Option<&'a OsStr>,
    /// The value of `--pid-file`.
    pub pid_file: Option<&'a OsStr>,
    /// The value of `--console-socket`.
    pub console_socket: Option<&'a OsStr>,
    /// Whether `--no-pivot` is there.
    pub no_pivot: bool,
}

impl<'a> Call<'a> {
    /// None where there is no command, or something before it that is not known.
    pub(super) fn of(arguments: &'a [OsString]) -> Option<Self> {
        let mut at = 0;
        let command = loop {
            let argument = arguments.get(at)?;
            if !argument.as_bytes().starts_with(b"-") {
                break argument;
            }
            let name = name_of(argument).to_str()?;
            at += match (VALUED.contains(&name), argument.as_bytes().contains(&b'=')) {
                (true, false) => 2,
                (true, true) => 1,
                (false, _) if SWITCHES.contains(&name) => 1,
                (false, _) => return None,
            };
        };
        let (globals, rest) = (&arguments[..at], &arguments[at + 1..]);
        let (id, options) = rest.split_last().map_or((None, rest), |(id, options)| (Some(id.as_os_str()), options));
        Some(Self {
            globals,
            log: value(globals, &["--log"]).filter(|log| !log.is_empty()),
            is_json: value(globals, &["--log-format"]).is_some_and(|format| format == "json"),
            command,
            id,
            bundle: value(options, &["--bundle", "-b"]),
            pid_file: value(options, &["--pid-file"]),
            console_socket: value(options, &["--console-socket"]).filter(|socket| !socket.is_empty()),
            no_pivot: options.iter().any(|option| option == "--no-pivot"),
        })
    }
}

/// The option without its value.
fn name_of(argument: &OsStr) -> &OsStr {
    OsStr::from_bytes(argument.as_bytes().split(|byte| *byte == b'=').next().unwrap_or_default())
}

/// The value of an option, the last one where it is there twice, as runc takes it.
pub(super) fn value<'a>(arguments: &'a [OsString], names: &[&str]) -> Option<&'a OsStr> {
    let found = arguments.iter().rposition(|argument| names.iter().any(|name| name_of(argument) == *name))?;
    let after = arguments[found].as_bytes().splitn(2, |byte| *byte == b'=').nth(1).map(OsStr::from_bytes);
    after.or_else(|| arguments.get(found + 1).map(OsString::as_os_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn containerds_calls_are_understood() {
        let arguments =
            words("--root /r --log /b/log.json --log-format json --systemd-cgroup create --bundle /b --pid-file /b/init.pid --no-pivot c1");
        let call = Call::of(&arguments).unwrap();
        assert_eq!((call.command, call.id, call.bundle), (OsStr::new("create"), Some(OsStr::new("c1")), Some(OsStr::new("/b"))));
        assert_eq!((call.log, call.is_json, call.globals.len()), (Some(OsStr::new("/b/log.json")), true, 7));
        assert_eq!((call.pid_file, call.console_socket, call.no_pivot), (Some(OsStr::new("/b/init.pid")), None, true));
        let arguments = words("--log=/l --debug create --bundle=/x -b /y --console-socket=/s c2");
        let call = Call::of(&arguments).unwrap();
        assert_eq!(
            (call.log, call.is_json, call.bundle, call.console_socket),
            (Some("/l".as_ref()), false, Some("/y".as_ref()), Some("/s".as_ref()))
        );
    }

    /// By their source (`conmon/src/runtime_args.c`, CRI-O's `internal/oci/runtime_oci.go`); none has met drover-runc.
    #[test]
    fn conmons_and_crios_calls_are_understood() {
        let arguments = words("--systemd-cgroup --root=/run/runc create --bundle /b/userdata --pid-file /b/userdata/pidfile --no-pivot c1");
        let call = Call::of(&arguments).unwrap();
        assert_eq!((call.command, call.id, call.bundle), (OsStr::new("create"), Some(OsStr::new("c1")), Some(OsStr::new("/b/userdata"))));
        assert_eq!((call.log, call.pid_file, call.globals.len()), (None, Some(OsStr::new("/b/userdata/pidfile")), 2));
        let arguments = words("--root /run/runc --systemd-cgroup checkpoint --file-locks --image-path /i --work-path /w --leave-running c1");
        let call = Call::of(&arguments).unwrap();
        assert_eq!((call.command, call.id), (OsStr::new("checkpoint"), Some(OsStr::new("c1"))));
    }

    #[test]
    fn what_is_odd_is_not_understood() {
        for line in ["", "--version", "--unknown create c", "--log", "-root /r create c", "-- create c"] {
            assert_eq!(Call::of(&words(line)), None, "{line}");
        }
        assert_eq!(Call::of(&words("list")).unwrap().id, None);
    }
}
