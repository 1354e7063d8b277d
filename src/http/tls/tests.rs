//! Certificates that change under a server.

use std::net::SocketAddr;

use axum::routing::get;
use jiff::{SignedDuration, Timestamp};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use super::*;

struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn ca() -> Ca {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).expect("a CA").pem();
    Ca { pem, issuer: Issuer::new(params, key) }
}

fn identity(ca: &Ca, name: &str) -> Arc<Identity> {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = params.signed_by(&key, &ca.issuer).expect("a leaf");
    let now = Timestamp::now();
    Arc::new(Identity {
        chain_pem: format!("{}{}", leaf.pem(), ca.pem),
        key_pem: key.serialize_pem(),
        ca_pem: ca.pem.clone(),
        not_before: now,
        not_after: now + SignedDuration::from_hours(24),
    })
}

/// A client that trusts this CA and shows this identity, where one is given.
fn client(trusted: &Ca, shown: Option<&Identity>, name: &str, address: SocketAddr) -> reqwest::Client {
    let _ = ring::default_provider().install_default();
    let root = reqwest::Certificate::from_pem(trusted.pem.as_bytes()).expect("a CA");
    let mut builder = reqwest::Client::builder().tls_certs_only([root]).resolve(name, address).timeout(Duration::from_secs(5));
    if let Some(shown) = shown {
        let pem = format!("{}{}", shown.key_pem, shown.chain_pem);
        builder = builder.identity(reqwest::Identity::from_pem(pem.as_bytes()).expect("an identity"));
    }
    builder.build().expect("a client")
}

struct Server {
    address: SocketAddr,
    identity: watch::Sender<Arc<Identity>>,
    token: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

fn server(first: Arc<Identity>, clients: Clients) -> Server {
    let identity = watch::Sender::new(first);
    let tls = FollowingTls::new(identity.subscribe(), clients).expect("TLS");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let router = Router::new().route("/", get(async |peer: Peer| peer.dns_names.join(",")));
    let token = CancellationToken::new();
    let task = tokio::spawn(serve(listener, tls.config(), router, token.clone(), Duration::from_secs(1)));
    tokio::spawn(tls.run(token.clone()));
    Server { address, identity, token, task }
}

async fn ask(client: &reqwest::Client, name: &str, address: SocketAddr) -> Result<String, reqwest::Error> {
    client.get(format!("https://{name}:{}/", address.port())).send().await?.text().await
}

#[tokio::test]
async fn agents_know_each_other_by_name() {
    let (ca, stranger) = (ca(), ca());
    let server = server(identity(&ca, "n1.nodes.drover.dev"), Clients::Verified);
    let name = "n1.nodes.drover.dev";
    let n2 = identity(&ca, "n2.nodes.drover.dev");
    let said = ask(&client(&ca, Some(&n2), name, server.address), name, server.address).await.expect("an answer");
    assert_eq!(said, "n2.nodes.drover.dev");
    assert!(ask(&client(&ca, None, name, server.address), name, server.address).await.is_err(), "no certificate, no answer");
    let forged = identity(&stranger, "n2.nodes.drover.dev");
    assert!(ask(&client(&ca, Some(&forged), name, server.address), name, server.address).await.is_err(), "another CA's word");
    let wrong = "n3.nodes.drover.dev";
    assert!(ask(&client(&ca, Some(&n2), wrong, server.address), wrong, server.address).await.is_err(), "not the node that was asked");
    server.token.cancel();
    server.task.await.expect("no panic").expect("an ordinary end");
}

#[tokio::test]
async fn a_certificate_is_swapped_without_a_restart_and_a_bad_one_is_not() {
    let (old, new) = (ca(), ca());
    let name = "drover.drover.svc";
    let server = server(identity(&old, name), Clients::Anyone);
    let ask_with = async |trusted: &Ca| ask(&client(trusted, None, name, server.address), name, server.address).await;
    assert_eq!(ask_with(&old).await.expect("an answer"), "");

    let good = identity(&old, name);
    server.identity.send_replace(Arc::new(Identity { key_pem: identity(&old, name).key_pem.clone(), ..(*good).clone() }));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(ask_with(&old).await.is_ok(), "the last good one stays");

    server.identity.send_replace(identity(&new, name));
    for _ in 0..50 {
        if ask_with(&new).await.is_ok() {
            assert!(ask_with(&old).await.is_err());
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the new certificate is never shown");
}
