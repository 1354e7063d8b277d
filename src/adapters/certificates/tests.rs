//! The life of certificates: issued, renewed, lost.

use std::sync::Arc;

use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

use super::*;
use crate::domain::{
    agent_certificate::{Requester, USAGES, judge},
    ids::node_server_name,
};

const AGENT: &str = "system:serviceaccount:drover:drover-agent";

fn now() -> Timestamp {
    "2026-11-23T12:00:00Z".parse().expect("a time")
}

fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().expect("certificates")
}

/// Verifies as a client (`Some(name)`) or as a server does.
fn verify(ca: &Authority, chain_pem: &str, server: Option<&str>, at: Timestamp) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(chain(ca.certificate_pem()).remove(0)).expect("a CA");
    let (roots, provider) = (Arc::new(roots), Arc::new(rustls::crypto::ring::default_provider()));
    let certificates = chain(chain_pem);
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::try_from(at.as_second()).expect("after 1970")));
    if let Some(name) = server {
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build().expect("a verifier");
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        verifier.verify_server_cert(&certificates[0], &certificates[1..], &name, &[], at).map(|_| ())
    } else {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build().expect("a verifier");
        verifier.verify_client_cert(&certificates[0], &certificates[1..], at).map(|_| ())
    }
}

#[test]
fn a_ca_survives_its_secret() {
    let ca = Authority::generate(now()).expect("a CA");
    let again = Authority::from_pem(ca.certificate_pem(), ca.key_pem()).expect("the same CA");
    assert_eq!(again.not_after(), now() + CA_LIFETIME);
    let leaf = again.issue_server(&["drover.drover.svc".to_owned()], now(), WEBHOOK_LIFETIME).expect("a leaf");
    verify(&ca, &leaf.chain_pem, Some("drover.drover.svc"), now()).expect("the CA's word");
    assert!(!format!("{leaf:?} {ca:?}").contains("PRIVATE"), "keys never reach a log");
}

#[test]
fn a_secret_of_mismatched_parts_is_refused() {
    let (one, two) = (Authority::generate(now()).expect("a CA"), Authority::generate(now()).expect("a CA"));
    let problem = Authority::from_pem(one.certificate_pem(), two.key_pem()).expect_err("another key");
    assert!(problem.to_string().contains("made for another key"), "{problem}");
    let leaf = one.issue_server(&["x.svc".to_owned()], now(), WEBHOOK_LIFETIME).expect("a leaf");
    let problem = Authority::from_pem(&leaf.chain_pem, &leaf.key_pem).expect_err("a leaf");
    assert!(problem.to_string().contains("not a CA's"), "{problem}");
}

#[test]
fn a_leaf_serves_its_names_for_its_life_and_no_client() {
    let ca = Authority::generate(now()).expect("a CA");
    let names = ["drover.drover.svc".to_owned(), "drover.drover.svc.cluster.local".to_owned()];
    let leaf = ca.issue_server(&names, now(), WEBHOOK_LIFETIME).expect("a leaf");
    for name in &names {
        verify(&ca, &leaf.chain_pem, Some(name), now()).expect("valid");
    }
    assert!(verify(&ca, &leaf.chain_pem, Some("other.svc"), now()).is_err());
    assert!(verify(&ca, &leaf.chain_pem, Some(&names[0]), leaf.not_after + SignedDuration::from_secs(1)).is_err());
    assert!(verify(&ca, &leaf.chain_pem, None, now()).is_err(), "the manager's certificate opens no agent");
    let renew_in = leaf.renew_at().duration_since(now()).as_hours();
    assert!((478..=480).contains(&renew_in), "{renew_in} h of 720");
}

fn honest() -> Requester {
    Requester { username: AGENT.to_owned(), node_names: vec!["n1".to_owned()], usages: USAGES.map(str::to_owned).to_vec() }
}

#[test]
fn an_agents_request_becomes_a_certificate_for_both_directions() {
    let ca = Authority::generate(now()).expect("a CA");
    let made = request(&node_server_name("n1")).expect("a request");
    let requested = ca.read(made.request_pem.as_bytes()).expect("readable");
    let node = judge(&honest(), &requested, AGENT).expect("granted");
    let chain_pem = ca.issue(made.request_pem.as_bytes(), &node_server_name(&node), now(), SignedDuration::from_hours(24)).expect("signed");
    verify(&ca, &chain_pem, Some("n1.nodes.drover.dev"), now()).expect("a server");
    verify(&ca, &chain_pem, None, now()).expect("a client");
    assert!(verify(&ca, &chain_pem, Some("n2.nodes.drover.dev"), now()).is_err());
    let other = Authority::generate(now()).expect("a CA");
    assert!(verify(&other, &chain_pem, None, now()).is_err(), "another CA's word does not count");
}

#[test]
fn hostile_requests_are_denied_with_their_reason() {
    type Change = fn(&mut CertificateParams);
    let ca = Authority::generate(now()).expect("a CA");
    let cases: [(&[&str], Change, &str); 6] = [
        (&["n2.nodes.drover.dev"], |_| {}, "gets \"n1.nodes.drover.dev\" and nothing else"),
        (&["n1.nodes.drover.dev", "drover.drover.svc"], |_| {}, "nothing else"),
        (&["n1.nodes.drover.dev", "10.0.0.1"], |_| {}, "asks for IP 10.0.0.1"),
        (&[], |_| {}, "nothing else"),
        (&["n1.nodes.drover.dev"], |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), "asks to be a CA"),
        (
            &["n1.nodes.drover.dev"],
            |p| p.subject_alt_names.push(SanType::URI("spiffe://x/y".try_into().expect("a URI"))),
            "asks for URI spiffe://x/y",
        ),
    ];
    for (names, change, expected) in cases {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).expect("names");
        change(&mut params);
        let pem = params.serialize_request(&key).expect("a request").pem().expect("pem");
        let reasons = judge(&honest(), &ca.read(pem.as_bytes()).expect("readable"), AGENT).expect_err(expected);
        assert!(reasons.iter().any(|r| r.contains(expected)), "{expected}: {reasons:?}");
        // Even where somebody approves it by hand, nothing but the key is taken over.
        let issued = ca.issue(pem.as_bytes(), "n1.nodes.drover.dev", now(), SignedDuration::from_hours(1)).expect("signed");
        let (_, block) = parse_x509_pem(issued.as_bytes()).expect("pem");
        let certificate = block.parse_x509().expect("a certificate");
        let names = &certificate.subject_alternative_name().expect("names").expect("names").value.general_names;
        assert!(names.len() == 1 && !certificate.is_ca(), "{names:?}");
    }
}

#[test]
fn a_request_that_its_key_did_not_sign_is_denied() {
    let ca = Authority::generate(now()).expect("a CA");
    let made = request("n1.nodes.drover.dev").expect("a request");
    let (_, block) = parse_x509_pem(made.request_pem.as_bytes()).expect("pem");
    let mut der = block.contents.clone();
    *der.last_mut().expect("bytes") ^= 1;
    let lines: String = {
        let encoded = serde_json::to_value(k8s_openapi::ByteString(der)).expect("base64");
        encoded.as_str().expect("text").to_owned()
    };
    let broken = format!("-----BEGIN CERTIFICATE REQUEST-----\n{lines}\n-----END CERTIFICATE REQUEST-----\n");
    let problem = ca.read(broken.as_bytes()).expect_err("a broken signature");
    assert!(problem.contains("spec.request cannot be read"), "{problem}");
    assert!(ca.read(b"\xff").is_err() && ca.read(b"hello").is_err());
}
