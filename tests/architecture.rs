//! The direction of imports, and what else keeps the house in order; read from the sources themselves.
//!
//! `domain ← ports ← engine ← {adapters, controllers, http, agent} ← app ← cli ← main`: a room may import what stands left of it, and rooms of the
//! same place never each other. Paths are read from tokens, so that comments and strings count for nothing, and macros count.

use std::{
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Room → the other rooms of the crate that it may name. `testing` exists in tests only and is anybody's.
const MAY_IMPORT: [(&str, &[&str]); 20] = [
    ("api", &[]),
    ("markers", &[]),
    ("gate", &["markers"]),
    ("runc", &["gate", "markers"]),
    ("telemetry", &[]),
    ("readiness", &[]),
    ("shutdown", &[]),
    ("watching", &[]),
    ("metrics", &["api"]),
    ("domain", &["api"]),
    ("ports", &["api", "domain"]),
    ("engine", &["api", "domain", "ports"]),
    ("adapters", &["api", "domain", "ports", "markers", "gate", "metrics", "runc"]),
    ("controllers", &["api", "domain", "ports", "engine", "metrics", "watching"]),
    ("http", &["api", "domain", "ports", "engine", "metrics", "readiness"]),
    ("agent", &["api", "domain", "ports", "engine", "markers", "metrics", "runc", "watching"]),
    (
        "app",
        &[
            "api",
            "domain",
            "ports",
            "engine",
            "adapters",
            "controllers",
            "http",
            "agent",
            "markers",
            "metrics",
            "readiness",
            "runc",
            "shutdown",
            "telemetry",
            "watching",
        ],
    ),
    ("cli", &["api", "domain", "app", "telemetry"]),
    ("main", &["cli"]),
    ("bin", &["gate", "markers", "runc"]),
];

/// What the pure core must not know: the world, its clock and its dice.
const IMPURE: [&str; 24] = [
    "tokio",
    "tokio_util",
    "futures",
    "reqwest",
    "rdkafka",
    "axum",
    "hyper",
    "tonic",
    "rand",
    "kube::Api",
    "kube::Client",
    "kube::client",
    "kube::runtime",
    "std::env::args",
    "std::env::var",
    "std::env::vars",
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "Timestamp::now",
    "jiff::Zoned",
];

const LONGEST_FILE: usize = 400;

/// Everything that is wrong with one file, as `src/…` names it.
fn faults(file: &str, text: &str) -> Vec<String> {
    let mut found = vec![];
    let lines = text.lines().count();
    if lines > LONGEST_FILE {
        found.push(format!("{file} has {lines} lines; split it by what it does"));
    }
    if !text.starts_with("//!") {
        found.push(format!("{file} does not begin with //! and what it is for"));
    }
    let module = module_of(file);
    let room = module.first().map_or("lib", String::as_str);
    for path in paths(text, &module) {
        let named = path.join("::");
        match path.split_first() {
            Some((first, inside)) if first == "crate" => {
                let Some(other) = inside.first() else { continue };
                if !may_import(room, other) {
                    found.push(format!("{file} names {named}; {room} must not know {other}"));
                }
            }
            _ if room == "domain" && IMPURE.iter().any(|impure| is_within(&named, impure)) => {
                found.push(format!("{file} names {named}; the core is pure"));
            }
            _ => {}
        }
    }
    found
}

fn may_import(room: &str, other: &str) -> bool {
    // The map names every room, and a macro or type at the crate's root belongs to nobody.
    if room == "lib" || room == other || other == "testing" || !MAY_IMPORT.iter().any(|(name, _)| *name == other) {
        return true;
    }
    match MAY_IMPORT.iter().find(|(name, _)| *name == room) {
        Some((_, allowed)) => allowed.contains(&other),
        None => room == "testing" && !["app", "cli", "main"].contains(&other),
    }
}

fn is_within(path: &str, prefix: &str) -> bool {
    path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with("::")) || path.ends_with(&format!("::{prefix}"))
}

/// `src/domain/admission/claim.rs` → domain, admission, claim.
fn module_of(file: &str) -> Vec<String> {
    let inside = file.trim_start_matches("src/").trim_end_matches(".rs");
    if inside == "lib" { vec![] } else { inside.split('/').map(str::to_owned).collect() }
}

/// Every path of two or more segments in the code; those inside the crate begin with `crate`, however they are written.
fn paths(text: &str, module: &[String]) -> Vec<Vec<String>> {
    let tokens: TokenStream = text.parse().expect("the compiler reads it too");
    let mut found = vec![];
    walk(tokens, module, &mut found);
    found
}

fn walk(tokens: TokenStream, module: &[String], found: &mut Vec<Vec<String>>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at..] {
            [TokenTree::Ident(keyword), TokenTree::Ident(name), TokenTree::Group(body), ..] if keyword == "mod" => {
                let inner: Vec<_> = module.iter().cloned().chain([name.to_string()]).collect();
                walk(body.stream(), &inner, found);
                at += 3;
            }
            [TokenTree::Ident(_), ..] if is_separator(&tokens, at + 1) => at = path(&tokens, at, &[], module, found),
            [TokenTree::Group(group), ..] => {
                walk(group.stream(), module, found);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

/// Reads one path, and each branch of it where it ends in braces; returns where it ends.
fn path(tokens: &[TokenTree], start: usize, stem: &[String], module: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut segments = stem.to_vec();
    let mut at = start;
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(segment)) => segments.push(segment.to_string()),
            Some(TokenTree::Group(branches)) if branches.delimiter() == Delimiter::Brace => {
                let inner: Vec<TokenTree> = branches.stream().into_iter().collect();
                for branch in inner.split(|token| matches!(token, TokenTree::Punct(comma) if comma.as_char() == ',')) {
                    path(branch, 0, &segments, module, found);
                }
                return at + 1;
            }
            // A glob, a generic argument or a macro's variable ends it.
            _ => break,
        }
        at += 1;
        if !is_separator(tokens, at) {
            break;
        }
        at += 2;
    }
    found.push(absolute(&segments, module));
    at.max(start + 1)
}

fn is_separator(tokens: &[TokenTree], at: usize) -> bool {
    let colon = |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(colon)) if colon.as_char() == ':');
    colon(at) && colon(at + 1)
}

/// `super::…` and `self::…` as the crate's root sees them; the binaries name the crate `drover`.
fn absolute(segments: &[String], module: &[String]) -> Vec<String> {
    let ups = segments.iter().take_while(|segment| *segment == "super").count();
    let from_root = |module: &[String], rest: &[String]| [&["crate".to_owned()], module, rest].concat();
    match segments[ups..].split_first() {
        rest if ups > 0 => {
            let rest = rest.map_or(&[][..], |_| &segments[ups..]);
            from_root(&module[..module.len().saturating_sub(ups)], rest)
        }
        Some((first, rest)) if first == "self" && !rest.is_empty() => from_root(module, rest),
        Some((first, rest)) if first == "drover" => from_root(&[], rest),
        _ => segments.to_vec(),
    }
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
}

#[test]
fn the_house_is_in_order() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![];
    sources(&root.join("src"), &mut files);
    assert!(files.len() > 100, "the sources are where they were");
    let name = |file: &Path| file.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
    let found: Vec<_> = files.iter().flat_map(|file| faults(&name(file), &fs::read_to_string(file).expect("a text"))).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_fault_is_found() {
    let cases = [
        ("src/domain/x.rs", "use crate::{api::Migration, ports::Clock};", "domain must not know ports"),
        ("src/domain/x.rs", "use kube::{ResourceExt as _, Client};", "kube::Client; the core is pure"),
        ("src/domain/x.rs", "use std::{collections::BTreeMap, time::{Duration, Instant}};", "std::time::Instant; the core is pure"),
        ("src/domain/x.rs", "fn now() -> Timestamp { jiff::Timestamp::now() }", "the core is pure"),
        ("src/domain/x.rs", "fn roll() -> u8 { rand::random() }", "rand::random; the core is pure"),
        ("src/adapters/x.rs", "mod inner { use super::super::super::http::tls; }", "adapters must not know http"),
        ("src/agent/source/x.rs", "fn f() { assert_eq!(super::super::super::controllers::x(), 1) }", "agent must not know controllers"),
        ("src/http/x.rs", "fn f(x: &crate::adapters::cluster::KubeCluster) {}", "http must not know adapters"),
        ("src/controllers.rs", "pub use crate::agent::journal;", "controllers must not know agent"),
        ("src/engine.rs", "use crate::app;", "engine must not know app"),
        ("src/cli/node.rs", "use crate::adapters::node_setup::install;", "cli must not know adapters"),
        ("src/main.rs", "use drover::app::manager;", "main must not know app"),
    ];
    for (file, code, expected) in cases {
        let found = faults(file, &format!("//! Doc.\n{code}"));
        assert!(found.len() == 1 && found[0].contains(expected), "{code}: {found:?}");
    }
    assert_eq!(faults("src/domain/x.rs", "fn f() {}").len(), 1, "no doc");
    assert_eq!(faults("src/domain/x.rs", &"//! Doc.\n".repeat(LONGEST_FILE + 1)).len(), 1, "too long");
}

#[test]
fn what_is_allowed_is_no_fault() {
    let code = r#"//! Doc: use crate::adapters.
        // use tokio::sync;
        use std::{collections::BTreeMap, time::Duration};
        use kube::ResourceExt as _;
        use super::{keys, preflight::{self, Blocker}};
        use crate::api::Migration;
        pub(crate) const TEXT: &str = "use crate::http::tls; tokio::spawn";
        mod tests { use super::*; use crate::testing::second; }
    "#;
    assert_eq!(faults("src/domain/x.rs", code), Vec::<String>::new());
    assert_eq!(faults("src/cli/node.rs", "//! Doc.\nuse crate::app::node::setup; use super::serve;"), Vec::<String>::new());
}
