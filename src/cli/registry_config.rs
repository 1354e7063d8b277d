//! `drover registry-config`: the node's registry is told where its agent listens, with a secret that only the two share.
//!
//! Distribution reads its configuration at its start and has no shell beside it, so an init container writes it, into a folder in memory.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use crate::domain::ids::hex;

/// Flags; the chart sets them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The registry's configuration without notifications
    #[arg(long, default_value = "/etc/distribution/config.yml")]
    from: PathBuf,
    /// Where the whole configuration goes
    #[arg(long, default_value = "/run/drover/registry.yml")]
    to: PathBuf,
    /// Where the secret goes
    #[arg(long, default_value = "/run/drover/notification-token")]
    token_file: PathBuf,
    /// Port of this node at which the agent takes notifications
    #[arg(long, default_value_t = 5788)]
    notification_port: u16,
}

impl Args {
    /// Writes both files.
    ///
    /// # Errors
    /// Where a file cannot be read or written, or the configuration has notifications already.
    pub fn run(self) -> anyhow::Result<()> {
        let base = fs::read_to_string(&self.from).with_context(|| format!("failed to read {}", self.from.display()))?;
        if base.lines().any(|line| line.starts_with("notifications:")) {
            bail!("{} has notifications already; take them out, the agent adds its own", self.from.display());
        }
        let bits: [u8; 32] = rand::random();
        let token = hex(&bits);
        write(&self.token_file, &token)?;
        write(&self.to, &with_notifications(&base, self.notification_port, &token))
    }
}

/// `timeout`, `threshold`, `backoff`: an agent that starts beside its registry is tried again within a second.
fn with_notifications(base: &str, port: u16, token: &str) -> String {
    format!(
        "{}\nnotifications:\n  events: {{includereferences: false}}\n  endpoints:\n    - name: drover\n      url: http://127.0.0.1:{port}/notifications\n      \
         headers: {{Authorization: [Bearer {token}]}}\n      timeout: 1s\n      threshold: 3\n      backoff: 1s\n      ignore:\n        mediatypes: [application/octet-stream]\n        \
         actions: [pull, mount, delete]\n",
        base.trim_end()
    )
}

/// Readable by its owner alone.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).with_context(|| format!("failed to write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_is_told_where_to_send_what_it_tells_and_with_which_secret() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("config.yml"), "version: 0.1\nhttp: {net: unix}\n").expect("written");
        let args = || Args { from: at("config.yml"), to: at("out.yml"), token_file: at("token"), notification_port: 5788 };
        args().run().expect("written");
        let (config, token) = (fs::read_to_string(at("out.yml")).expect("config"), fs::read_to_string(at("token")).expect("token"));
        let config: serde_json::Value = serde_saphyr::from_str(&config).expect("YAML");
        assert_eq!(config["notifications"]["endpoints"][0]["headers"]["Authorization"][0], format!("Bearer {token}"));
        assert_eq!(config["notifications"]["endpoints"][0]["url"], "http://127.0.0.1:5788/notifications");
        assert!(config["http"]["net"] == "unix" && token.len() == 64);
        args().run().expect("written");
        assert_ne!(fs::read_to_string(at("token")).expect("token"), token, "each start has its own");
        fs::write(at("config.yml"), "notifications: {}\n").expect("written");
        assert!(args().run().is_err());
    }
}
