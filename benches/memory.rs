//! What it costs to bring the memory of a pod to another node, against a copy of the same bytes within memory (`make bench`).
//!
//! Both agents are in this process, with all that lies between their disks: mTLS, hashes, the push door. There is no network, so this is the work of the
//! processors alone; the two nodes of the lab share theirs. `/dev/shm` is a tmpfs, as `/run` is on a node.

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use axum_server::Handle;
use bytes::Bytes;
use drover::{
    adapters::{
        certificates::{self, Authority},
        layout::NodeLayout,
        registry::AgentPusher,
    },
    agent::registry_proxy::{Grant, Upstream, serve_pushes},
    domain::{
        ids::node_server_name,
        memory::PRE_COPY,
        pages::{PAGE, PageIndex, hash_of},
    },
    http::tls::{Clients, FollowingTls},
    metrics::Metrics,
    ports::{
        Growing, PushTarget, Pusher as _,
        front::{AgentSigner as _, Identity},
        layout::{Incoming, Layout as _, Size},
    },
};
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const REPOSITORY: &str = "drover/00000000000000000000000000000001";
const BYTES: u64 = 1 << 30;
const ROUNDS: usize = 5;

fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::Builder::new().prefix("drover-bench").tempdir_in("/dev/shm")?;
    let dump = folder.path().join("dump");
    fs::create_dir_all(dump.join("checkpoint"))?;
    write_pages(&dump.join("checkpoint/pages-1.img"))?;
    let runtime = tokio::runtime::Runtime::new()?;
    let node = folder.path().join("node");
    let (pusher, layout, target) = {
        let _inside = runtime.enter();
        nodes(&node)?
    };
    println!("{:>12} {:>8} {:>8} {:>14}", "1 GiB", "s", "CPU s", "CPU of a copy");
    for _ in 0..ROUNDS {
        let copied = measured(|| {
            fs::copy(dump.join("checkpoint/pages-1.img"), folder.path().join("copy"))?;
            Ok(())
        })?;
        fs::remove_file(folder.path().join("copy"))?;
        let moved = |known: Arc<PageIndex>| {
            let moved = measured(|| {
                let written = CancellationToken::new();
                written.cancel();
                let dump = Growing { folder: dump.clone(), container: "c".to_owned(), bytes: BYTES, known: Arc::clone(&known) };
                Ok(runtime.block_on(pusher.send_ahead(&dump, &target, written))?)
            })?;
            fs::remove_file(dump.join("memory.json"))?;
            runtime.block_on(layout.forget(REPOSITORY))?;
            anyhow::Ok(moved)
        };
        let whole = moved(Arc::default())?;
        let known = Arc::new(runtime.block_on(pre_copied(&layout, &dump.join("checkpoint/pages-1.img")))?);
        let named = moved(known)?;
        for (what, (took, worked)) in [("copied", copied), ("moved", whole), ("pre-copied", named)] {
            let ratio = worked.as_secs_f64() / copied.1.as_secs_f64();
            println!("{what:>12} {:>8.3} {:>8.3} {ratio:>13.1}x", took.as_secs_f64(), worked.as_secs_f64());
        }
    }
    Ok(())
}

/// Has the destination have nine of ten pages before: what a pod may have changed of its memory meanwhile is more in some, and less in most.
async fn pre_copied(layout: &NodeLayout, image: &Path) -> anyhow::Result<PageIndex> {
    let (mut index, mut chunks) = (PageIndex::default(), vec![]);
    for (at, page) in fs::read(image)?.chunks_exact(PAGE).enumerate() {
        if at % 10 > 0 && index.add(hash_of(page)) {
            chunks.push(Ok(Bytes::copy_from_slice(page)));
        }
    }
    let before = Incoming {
        repository: REPOSITORY.to_owned(),
        container: "c".to_owned(),
        file: PRE_COPY.to_owned(),
        size: Size::Estimated(BYTES),
        is_over_pre_copy: false,
    };
    layout.receive(&before, futures::stream::iter(chunks).boxed()).await?;
    Ok(index)
}

/// No page is like another, as in a database.
fn write_pages(path: &Path) -> anyhow::Result<()> {
    let mut file = fs::File::create(path)?;
    let mut word = 1_u64;
    for _ in 0..BYTES >> 20 {
        let mut chunk = Vec::with_capacity(1 << 20);
        while chunk.len() < 1 << 20 {
            word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
            chunk.extend_from_slice(&word.to_le_bytes());
        }
        file.write_all(&chunk)?;
    }
    Ok(())
}

/// How long it took, and how long the processors worked for this process meanwhile.
fn measured(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<(Duration, Duration)> {
    let (begun, before) = (Instant::now(), processor_time()?);
    work()?;
    Ok((begun.elapsed(), processor_time()?.saturating_sub(before)))
}

fn processor_time() -> anyhow::Result<Duration> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Ok(Duration::new(time.tv_sec.try_into()?, time.tv_nsec.try_into()?))
}

/// A source and a destination, in the runtime of the caller.
fn nodes(node: &Path) -> anyhow::Result<(AgentPusher, NodeLayout, PushTarget)> {
    let ca = Authority::generate(Timestamp::now())?;
    let layout = NodeLayout::new(node, &PathBuf::from("/disk"));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let tls = FollowingTls::new(identity(&ca, "n2")?, Clients::Verified)?;
    let grant = Grant { may_push: Arc::new(|_, _| true), most_bytes: u64::MAX, layout: Arc::new(layout.clone()) };
    let upstream = Upstream::at(Path::new("/nonexistent"))?;
    tokio::spawn(serve_pushes(listener, upstream, tls.config(), grant, Handle::new())?);
    let target = PushTarget { address, node: "n2".to_owned(), repository: REPOSITORY.to_owned() };
    Ok((AgentPusher::new(identity(&ca, "n1")?, Metrics::default()), layout, target))
}

fn identity(ca: &Authority, node: &str) -> anyhow::Result<watch::Receiver<Arc<Identity>>> {
    let name = node_server_name(node);
    let asked = certificates::request(&name)?;
    let signed = ca.issue(asked.request_pem.as_bytes(), &name, Timestamp::now(), SignedDuration::from_hours(1));
    let chain_pem = signed.map_err(anyhow::Error::msg)?;
    let identity = Identity {
        chain_pem,
        key_pem: asked.key_pem,
        ca_pem: ca.certificate_pem().to_owned(),
        not_before: Timestamp::now(),
        not_after: Timestamp::MAX,
    };
    Ok(watch::Sender::new(Arc::new(identity)).subscribe())
}
