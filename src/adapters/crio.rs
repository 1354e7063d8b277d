//! CRI-O by its files on a node: what its configuration says of handlers, monitors and hooks, and what of Drover's lies there.
//!
//! CRI-O reads `crio.conf`, then every file below `crio.conf.d` by name, whatever its ending; the last that sets a key counts (`pkg/config/config.go`,
//! `UpdateFromPath`). What its command line says instead is not seen here.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use toml_edit::{DocumentMut, Item, TableLike, TomlError, Value};

use super::memory_room::seen;
use crate::{
    domain::lanes::{RUNTIME_CLASS, crio::CrioFacts},
    runc::DEFAULT_PATH,
};

/// The folder of CRI-O's configuration.
pub const FOLDER: &str = "/etc/crio";
/// Where its socket is.
pub const SOCKET: &str = "/run/crio/crio.sock";
const CONFIG: &str = "/etc/crio/crio.conf";
/// Where drop-ins are.
pub const CONF_D: &str = "/etc/crio/crio.conf.d";
/// Where it looks for hooks where nobody says otherwise (`pkg/config/config.go`: `hooks.DefaultDir` alone).
pub const DEFAULT_HOOKS: &str = "/usr/share/containers/oci/hooks.d";
/// Where an administrator's hooks are, once `hooks_dir` names it.
pub const OVERRIDE_HOOKS: &str = "/etc/containers/oci/hooks.d";
/// Where CRI-O's own packages have what others have in a folder of programs.
pub const OWN_PROGRAMS: &str = "/usr/libexec/crio";

/// How much of what is wrong with a file is said.
const LONGEST_COMPLAINT: usize = 200;

/// CRI-O's configuration on a node: the names of its files and what they say, in the order in which CRI-O reads them.
#[derive(Debug, Default)]
pub struct Configuration(Vec<(String, DocumentMut)>);

impl Configuration {
    /// What is below `root`, but for one file; empty where there is none.
    ///
    /// # Errors
    /// The path that cannot be read, and why: also where it is no TOML, since what it sets is then unknown, and CRI-O would not start with it.
    pub fn read(root: &Path, without: &str) -> Result<Self, (PathBuf, io::Error)> {
        let mut found = Vec::new();
        for path in files(root)? {
            let name = on_host(root, &path);
            if name != without {
                let file = fs::read_to_string(&path).and_then(|text| parse(&text)).map_err(|error| (path, error))?;
                found.push((name, file));
            }
        }
        Ok(Self(found))
    }

    /// What the files that set a key of `crio.runtime` have for it.
    fn all(&self, key: &[&str]) -> impl DoubleEndedIterator<Item = (&str, &Item)> {
        self.0.iter().filter_map(|(name, file)| Some((name.as_str(), item(file, key)?)))
    }

    fn word(&self, key: &[&str]) -> Option<&str> {
        strings(self.all(key).next_back()?.1).next()
    }

    /// A setting of a handler's.
    fn of_handler(&self, handler: &str, key: &str) -> Option<&str> {
        self.word(&["runtimes", handler, key])
    }

    /// The file that names a handler.
    #[must_use]
    pub fn names_handler(&self, handler: &str) -> Option<&str> {
        self.all(&["runtimes", handler]).next_back().map(|(file, _)| file)
    }

    /// Folders of hooks, the later one before the earlier where both have a file of the same name.
    #[must_use]
    pub fn hooks(&self) -> Vec<String> {
        let named = self.all(&["hooks_dir"]).next_back();
        named.map_or_else(|| vec![DEFAULT_HOOKS.to_owned()], |(_, folders)| strings(folders).map(str::to_owned).collect())
    }

    /// All folders that any file has for hooks, and the usual ones.
    #[must_use]
    pub fn possible_hooks(&self) -> Vec<String> {
        let named = self.all(&["hooks_dir"]).flat_map(|(_, folders)| strings(folders));
        let mut all: Vec<String> = named.chain([DEFAULT_HOOKS, OVERRIDE_HOOKS]).map(str::to_owned).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Where conmon may be, the likeliest first. A handler does not inherit its monitor, and CRI-O does not start with one that it cannot find
    /// (`TranslateMonitorFields`). A handler of another type than `oci` has another monitor (conmonrs), beside which conmon lies in CRI-O's packages.
    #[must_use]
    pub fn monitors(&self) -> Vec<String> {
        let default = self.word(&["default_runtime"]).unwrap_or("crun");
        let others = self.all(&["runtimes"]).filter_map(|(_, handlers)| handlers.as_table_like()).flat_map(TableLike::iter).map(|(name, _)| name);
        let handlers = [default].into_iter().chain(others.filter(|name| *name != default && *name != RUNTIME_CLASS));
        let is_oci = |handler: &&str| matches!(self.of_handler(handler, "runtime_type"), None | Some("" | "oci"));
        let named = handlers.filter(is_oci).filter_map(|handler| self.of_handler(handler, "monitor_path"));
        let own = format!("{OWN_PROGRAMS}/conmon");
        let usual = DEFAULT_PATH.split(':').map(|folder| format!("{folder}/conmon"));
        let all = self.word(&["conmon"]).into_iter().chain(named).map(str::to_owned).chain(usual).chain([own]);
        all.filter(|path| path.starts_with('/')).collect()
    }

    /// Where another handler of CRI-O's has runc, or its packages have.
    #[must_use]
    pub fn other_runc(&self) -> Vec<String> {
        self.of_handler("runc", "runtime_path").map(str::to_owned).into_iter().chain([format!("{OWN_PROGRAMS}/runc")]).collect()
    }
}

fn parse(text: &str) -> io::Result<DocumentMut> {
    text.parse().map_err(|error: TomlError| {
        // Not its own display, which has the line as it stands: that may be long, and a node's profile is read by many.
        let line = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default().matches('\n').count() + 1;
        let complaint: String = error.message().chars().take(LONGEST_COMPLAINT).collect();
        io::Error::new(io::ErrorKind::InvalidData, format!("line {line} is no TOML: {complaint}"))
    })
}

/// What a file has for a key of `crio.runtime`, whether it is written with dots, in a table or in an inline one.
fn item<'a>(file: &'a DocumentMut, key: &[&str]) -> Option<&'a Item> {
    ["crio", "runtime"].iter().chain(key).try_fold(file.as_item(), |found, name| found.as_table_like()?.get(name))
}

/// A string, or the strings of a list; none of a value of another kind.
fn strings(item: &Item) -> impl Iterator<Item = &str> {
    item.as_str().into_iter().chain(item.as_array().into_iter().flatten().filter_map(Value::as_str))
}

/// The files in the order in which CRI-O reads them.
fn files(root: &Path) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let config = seen(root, Path::new(CONFIG));
    let mut found = if config.exists() { vec![config] } else { Vec::new() };
    let mut drop_ins = Vec::new();
    let mut folders = vec![seen(root, Path::new(CONF_D))];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|error| (folder.clone(), error))?,
        };
        for entry in entries {
            let path = entry.map_err(|error| (folder.clone(), error))?.path();
            if path.is_dir() { folders.push(path) } else { drop_ins.push(path) }
        }
    }
    drop_ins.sort();
    found.append(&mut drop_ins);
    Ok(found)
}

/// The path that a file below `root` has on the node.
fn on_host(root: &Path, path: &Path) -> String {
    format!("/{}", path.strip_prefix(root).unwrap_or(path).display())
}

/// Whether a path is a program of the node's. Links are followed as the node would, also the absolute ones of a root that is not this process's own.
#[must_use]
pub fn is_program(root: &Path, path: &str) -> bool {
    let open = |folder: &Path| rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let found = open(root).and_then(|root| rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT));
    let found = found.and_then(rustix::fs::fstat);
    found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::RegularFile && found.st_mode & 0o111 != 0)
}

/// Where the node has a program in a folder in which drover-runc looks.
#[must_use]
pub fn in_path(root: &Path, name: &str) -> Option<String> {
    DEFAULT_PATH.split(':').map(|folder| format!("{folder}/{name}")).find(|path| is_program(root, path))
}

/// What of Drover's is on the node: nothing, and why, where CRI-O's own files cannot be read. A hook that cannot be read is not there.
#[must_use]
pub fn facts(root: &Path) -> CrioFacts {
    let configuration = match Configuration::read(root, "") {
        Ok(configuration) => configuration,
        Err((path, error)) => {
            let unreadable = Some(format!("{} cannot be read: {error}", on_host(root, &path)));
            return CrioFacts { unreadable, ..CrioFacts::default() };
        }
    };
    let handler =
        configuration.names_handler(RUNTIME_CLASS).map(|_| configuration.of_handler(RUNTIME_CLASS, "runtime_path").unwrap_or_default().to_owned());
    let hook = configuration.hooks().iter().find_map(|folder| gate_hook(root, folder));
    CrioFacts {
        unreadable: None,
        is_program: handler.as_deref().is_some_and(|path| is_program(root, path)),
        handler,
        has_gate: hook.as_ref().is_some_and(|(_, gate)| is_program(root, gate)),
        hook: hook.map(|(file, _)| file),
        has_runc: in_path(root, "runc").is_some(),
    }
}

/// The file of a hooks folder that names the gate for createRuntime, and the path that it names.
fn gate_hook(root: &Path, folder: &str) -> Option<(String, String)> {
    let entries = fs::read_dir(seen(root, Path::new(folder))).ok()?;
    entries.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let path = entry.path();
        let bytes = if path.extension().is_some_and(|ending| ending == "json") { fs::read(path).ok()? } else { return None };
        let hook: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
        let gate = hook.pointer("/hook/path")?.as_str().filter(|path| path.rsplit('/').next() == Some("drover-gate"))?;
        let stages = hook.get("stages")?.as_array()?;
        stages.iter().any(|stage| stage == "createRuntime").then(|| (format!("{folder}/{name}"), gate.to_owned()))
    })
}

#[cfg(test)]
mod tests;
