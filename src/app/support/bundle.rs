//! The file: a tar, compressed, with one folder.

use std::io::Write;

use anyhow::Context as _;
use flate2::{Compression, write::GzEncoder};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::ports::PortResult;

/// A bundle that is being written.
pub(super) struct Bundle<W: Write> {
    tar: tar::Builder<GzEncoder<W>>,
    folder: String,
    time: u64,
    /// What could not be had.
    pub problems: Vec<String>,
    /// How often something could.
    pub read: usize,
}

impl<W: Write> Bundle<W> {
    pub fn new(out: W, folder: &str, now: Timestamp) -> Self {
        let tar = tar::Builder::new(GzEncoder::new(out, Compression::default()));
        Self { tar, folder: folder.to_owned(), time: u64::try_from(now.as_second()).unwrap_or_default(), problems: vec![], read: 0 }
    }

    /// What was read, or none; then it is noted why.
    pub fn note<T>(&mut self, read: PortResult<T>) -> Option<T> {
        match read {
            Ok(read) => {
                self.read += 1;
                Some(read)
            }
            Err(problem) => {
                self.problems.push(problem.to_string());
                None
            }
        }
    }

    /// Adds a file.
    pub fn add(&mut self, path: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(bytes.len())?);
        header.set_mode(0o600);
        header.set_mtime(self.time);
        self.tar.append_data(&mut header, format!("{}/{path}", self.folder), bytes).context("failed to write the bundle")
    }

    /// Adds a document.
    pub fn json(&mut self, path: &str, document: &Value) -> anyhow::Result<()> {
        self.add(path, &serde_json::to_vec_pretty(document)?)
    }

    /// Adds objects, as `kubectl get -f` reads them.
    pub fn list(&mut self, kind: &str, items: &[Value]) -> anyhow::Result<()> {
        self.json(&format!("objects/{kind}.json"), &json!({"apiVersion": "v1", "kind": "List", "items": items}))
    }

    /// Writes to the end; returns what could not be had, which the bundle names too.
    pub fn finish(mut self) -> anyhow::Result<Vec<String>> {
        let problems: String = self.problems.iter().flat_map(|problem| [problem.as_str(), "\n"]).collect();
        self.add("problems.txt", problems.as_bytes())?;
        let written = self.tar.into_inner().and_then(GzEncoder::finish).and_then(|mut out| out.flush());
        written.context("failed to write the bundle")?;
        Ok(self.problems)
    }
}
