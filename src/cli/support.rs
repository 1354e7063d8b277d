//! `drover support`: one file with what tells how migrations went.

use std::{
    fs::{self, File},
    io::{self, BufWriter},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};

use super::ask_cluster;
use crate::app::support::{Scope, Settings, collect, node};

/// What goes into the bundle.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Only Migrations of this namespace; without it those of all. With --migration: its namespace, `default` where it is not said
    #[arg(long, short)]
    namespace: Option<String>,
    /// Only this Migration, with those that it has made for several pods
    #[arg(long)]
    migration: Option<String>,
    /// How far back logs go (30m, 1h, 48h)
    #[arg(long, default_value = "1h", value_parser = since)]
    since: Duration,
    /// The bundle's file, or - for standard output; without it drover-support-TIME.tar.gz
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Drover's own namespace
    #[arg(long, default_value = "drover-system")]
    system_namespace: String,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Write the CRIU logs that this node keeps to standard output, as a compressed tar (in an agent's pod)
    Node(NodeArgs),
}

#[derive(Debug, clap::Args)]
struct NodeArgs {
    /// How far back logs go (30m, 1h, 48h)
    #[arg(long, default_value = "1h", value_parser = since)]
    since: Duration,
    /// Where the node keeps them
    #[arg(long, default_value = "/var/lib/drover/logs")]
    logs: PathBuf,
}

impl Args {
    /// Writes the bundle, and says what it lacks. The exit code is 0 also where something could not be had.
    ///
    /// # Errors
    /// Where nothing could be read, there is no such Migration, or the bundle cannot be written.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(Command::Node(args)) = self.command {
            node::write(&args.logs, args.since, BufWriter::new(io::stdout().lock()))?;
            return Ok(ExitCode::SUCCESS);
        }
        ask_cluster(async |client| {
            let now = Timestamp::now();
            let settings = self.settings(now);
            let output = self.output.unwrap_or_else(|| format!("{}.tar.gz", settings.folder).into());
            let problems = if output == Path::new("-") {
                collect(client, &settings, BufWriter::new(io::stdout().lock())).await?
            } else {
                let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&output);
                let file = file.with_context(|| format!("failed to write {}; name another file with --output", output.display()))?;
                let problems = collect(client, &settings, BufWriter::new(file)).await;
                problems.inspect_err(|_| drop(fs::remove_file(&output)))?
            };
            for problem in &problems {
                eprintln!("warning: {problem}");
            }
            eprintln!("{}: {}", output.display(), summary(problems.len()));
            Ok(ExitCode::SUCCESS)
        })
    }

    fn settings(&self, now: Timestamp) -> Settings {
        let scope = match (&self.namespace, &self.migration) {
            (None, None) => Scope::All,
            (Some(namespace), None) => Scope::Namespace(namespace.clone()),
            (namespace, Some(name)) => Scope::Migration { namespace: namespace.clone().unwrap_or_else(|| "default".to_owned()), name: name.clone() },
        };
        let folder = format!("drover-support-{}", now.strftime("%Y%m%dT%H%M%SZ"));
        Settings { scope, since: self.since, system_namespace: self.system_namespace.clone(), folder, now }
    }
}

fn summary(problems: usize) -> String {
    match problems {
        0 => "everything could be read. Look through it before you pass it on: logs and events name what runs in the cluster".to_owned(),
        some => format!(
            "{some} things could not be read (problems.txt). Look through it before you pass it on: logs and events name what runs in the cluster"
        ),
    }
}

fn since(text: &str) -> Result<Duration, String> {
    let duration: SignedDuration = text.parse().map_err(|error| format!("{error}; write it as 30m, 1h or 48h"))?;
    Duration::try_from(duration).ok().filter(|since| since.as_secs() > 0).ok_or_else(|| "it must be at least a second, as in 30m or 1h".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parsed(words: &[&str]) -> Result<Args, String> {
        Line::try_parse_from([&["support"], words].concat()).map(|line| line.args).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_asked_for_is_one_migration_a_namespace_or_all() {
        let scope = |words: &[&str]| parsed(words).unwrap().settings(Timestamp::UNIX_EPOCH).scope;
        let one = |namespace: &str| Scope::Migration { namespace: namespace.to_owned(), name: "m".to_owned() };
        assert_eq!(scope(&[]), Scope::All);
        assert_eq!(scope(&["-n", "shop"]), Scope::Namespace("shop".to_owned()));
        assert_eq!(scope(&["--migration", "m"]), one("default"));
        assert_eq!(scope(&["--migration", "m", "-n", "shop"]), one("shop"));
        assert_eq!(parsed(&[]).unwrap().settings(Timestamp::UNIX_EPOCH).folder, "drover-support-19700101T000000Z");
    }

    #[test]
    fn a_time_that_is_none_is_refused_with_what_would_be_one() {
        assert_eq!(parsed(&["--since", "90m"]).unwrap().since, Duration::from_mins(90));
        for wrong in ["soon", "0s", "-1h", "10"] {
            let error = parsed(&[&format!("--since={wrong}")]).unwrap_err();
            assert!(error.contains("--since") && error.contains("1h"), "{wrong}: {error}");
        }
        assert!(parsed(&["node", "--since", "5m"]).is_ok() && parsed(&["-n", "shop", "node"]).is_err());
    }
}
