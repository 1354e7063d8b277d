//! The time in which a copy runs and its memory still comes.

use super::lab;

/// Waits until a test's copy on n2 runs while its pages are outstanding and has printed since, then does something there.
#[track_caller]
pub fn once_it_waits(then: &str) {
    let script = format!(
        r#"for i in $(seq 6000); do
             if grep -ls outstanding /run/drover/runc/* | grep -qv '~'; then
               log=$(ls -t /var/log/pods/e2e-*/c/*.log | head -n 1)
               lines=$(wc -l <"$log")
               for j in $(seq 400); do [ "$(wc -l <"$log")" -gt "$lines" ] && break; sleep 0.005; done
               {then}
               echo did
               exit 0
             fi
             sleep 0.005
           done
           exit 1"#
    );
    assert_eq!(lab::on_node("n2", &script).trim(), "did", "no page was ever outstanding on n2");
}

/// Kills the processes whose command line has this in it, as pgrep finds them.
pub fn kill(program: &str) -> String {
    format!("kill -9 $(pgrep -f '{program}')")
}
