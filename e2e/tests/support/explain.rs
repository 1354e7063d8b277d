//! What is printed of a failed test.

use super::{NODES, Namespace, SYSTEM, lab::try_lab};

/// Lines of each daemon's log.
const DAEMON_LINES: &str = "40";

/// Prints everything that concerns the namespace, to standard error.
pub fn print(namespace: &Namespace) {
    let name = namespace.name.as_str();
    show("Migrations and Attestations", &["kubectl", "-n", name, "get", "migrations,attestations", "-o", "yaml"]);
    show("Pods", &["kubectl", "-n", name, "get", "pods", "-o", "wide"]);
    show("Events", &["kubectl", "-n", name, "get", "events", "--sort-by=.metadata.creationTimestamp"]);
    show("Drover", &["kubectl", "-n", SYSTEM, "get", "pods", "-o", "wide"]);
    let since = format!("--since-time={}", namespace.since);
    for (title, component, container) in [("Manager", "manager", "manager"), ("Agents", "agent", "agent"), ("Registries", "agent", "registry")] {
        let selector = format!("app.kubernetes.io/component={component}");
        let logs = ["kubectl", "-n", SYSTEM, "logs", "-l", &selector, "-c", container, "--prefix", "--tail=400", &since];
        show(title, &logs);
        if let Ok(text) = try_lab(&[logs.as_slice(), &["--previous"]].concat()) {
            eprintln!("--- {title}, before a restart\n{text}");
        }
    }
    for node in NODES {
        for daemon in ["kubelet", "containerd"] {
            show(&format!("{node}: {daemon}"), &["logs", &format!("{node}-{daemon}"), "-n", DAEMON_LINES]);
        }
    }
}

fn show(title: &str, arguments: &[&str]) {
    let (Ok(text) | Err(text)) = try_lab(arguments);
    eprintln!("--- {title}\n{text}");
}
