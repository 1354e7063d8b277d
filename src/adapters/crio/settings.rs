//! What a configuration file of CRI-O's sets: as much of TOML as such files are made of.
//!
//! Tables in brackets, keys with dots, strings and lists of strings, also over several lines. A value of another kind counts as set and has no
//! words. What is not read is a string over several lines, an escape in a string, and a name with a dot in quotes: no path that is looked for here has one.

/// One setting: its whole key (`crio.runtime.hooks_dir`), and the strings of its value. A table's own line is one without any.
pub(super) type Setting = (String, Vec<String>);

/// The settings of a file, as they stand in it.
pub(super) fn settings(text: &str) -> Vec<Setting> {
    let (mut found, mut table) = (Vec::new(), String::new());
    let mut lines = text.lines().map(|line| without_comment(line).trim());
    while let Some(line) = lines.next() {
        if let Some(header) = line.strip_prefix('[') {
            table = key(header.trim_start_matches('[').trim_end_matches(']'));
            found.push((table.clone(), Vec::new()));
        } else if let Some((name, value)) = line.split_once('=') {
            let mut value = value.trim().to_owned();
            while value.starts_with('[') && !value.ends_with(']') {
                let Some(more) = lines.next() else { break };
                value.push_str(more);
            }
            let parent = if table.is_empty() { String::new() } else { format!("{table}.") };
            found.push((format!("{parent}{}", key(name)), strings(&value)));
        }
    }
    found
}

/// A key without its quotes and spaces.
fn key(text: &str) -> String {
    text.split('.').map(|part| part.trim().trim_matches(['"', '\''])).collect::<Vec<_>>().join(".")
}

fn without_comment(line: &str) -> &str {
    let mut quote = None;
    for (at, found) in line.char_indices() {
        match quote {
            None if found == '#' => return &line[..at],
            None if found == '"' || found == '\'' => quote = Some(found),
            Some(open) if open == found => quote = None,
            _ => {}
        }
    }
    line
}

/// The strings of a value, or of its list; none where it is neither.
fn strings(value: &str) -> Vec<String> {
    let mut rest = value.trim_start_matches('[').trim_start();
    let mut found = Vec::new();
    while let Some(quote) = rest.chars().next().filter(|first| matches!(first, '"' | '\'')) {
        let Some((string, after)) = rest[1..].split_once(quote) else { break };
        found.push(string.to_owned());
        rest = after.trim_start_matches([',', ' ', '\t']);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
# [crio.runtime.runtimes.commented]
[crio.runtime]   # a table
default_runtime = "crun" # as it comes
hooks_dir = [
    "/usr/share/containers/oci/hooks.d", # one
    # "/not/this",
    '/etc/containers/oci/hooks.d',
]
no_pivot = false
conmon_env = ["PATH=/a#b:/c", "X=']'"]
empty = []
[crio.runtime.runtimes."crun"]
runtime_path = "/usr/libexec/crio/crun"
[crio.runtime.runtimes]
kata.runtime_path = '/usr/bin/kata'
runc = { runtime_path = "/usr/bin/runc" }
"#;

    #[test]
    fn the_files_that_crio_has_are_read_as_toml_reads_them() {
        let found = settings(FILE);
        let words = |key: &str| found.iter().filter(|(name, _)| name == key).map(|(_, words)| words.join(" ")).collect::<Vec<_>>();
        assert_eq!(words("crio.runtime.default_runtime"), ["crun"]);
        assert_eq!(words("crio.runtime.hooks_dir"), ["/usr/share/containers/oci/hooks.d /etc/containers/oci/hooks.d"]);
        assert_eq!(words("crio.runtime.no_pivot"), [""]);
        assert_eq!(words("crio.runtime.runtimes.crun.runtime_path"), ["/usr/libexec/crio/crun"]);
        assert_eq!(words("crio.runtime.runtimes.kata.runtime_path"), ["/usr/bin/kata"]);
        assert_eq!(words("crio.runtime.runtimes.runc"), [""], "that it is there is all that can be said of it");
        assert!(words("crio.runtime.runtimes.commented").is_empty());
        // What a whole reader of TOML finds of strings, but for inline tables.
        let mut whole = Vec::new();
        flatten("", FILE.parse::<toml_edit::DocumentMut>().unwrap().as_table(), &mut whole);
        let mut ours: Vec<Setting> = found.into_iter().filter(|(_, words)| !words.is_empty()).collect();
        whole.sort();
        ours.sort();
        assert_eq!(ours, whole);
    }

    fn flatten(at: &str, table: &toml_edit::Table, found: &mut Vec<Setting>) {
        for (name, item) in table {
            let key = if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
            let list = item.as_array().into_iter().flatten().filter_map(toml_edit::Value::as_str).map(str::to_owned).collect::<Vec<_>>();
            match (item.as_table(), item.as_str()) {
                (Some(inner), _) => flatten(&key, inner, found),
                (None, Some(string)) => found.push((key, vec![string.to_owned()])),
                (None, None) if !list.is_empty() => found.push((key, list)),
                (None, None) => {}
            }
        }
    }

    #[test]
    fn what_is_broken_ends_nothing() {
        assert_eq!(
            settings("[crio.runtime\nhooks_dir = [\n\"/a\","),
            [("crio.runtime".to_owned(), vec![]), ("crio.runtime.hooks_dir".to_owned(), vec!["/a".to_owned()])]
        );
        assert_eq!(settings("x = \"open\n"), [("x".to_owned(), vec![])]);
    }
}
