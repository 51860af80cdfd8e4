//! Real handshakes with certificates that are wrong in one way each.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use rustls_pki_types::PrivateKeyDer;

use super::*;

struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

fn authority(name: &str) -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    Authority { certificate, issuer: Issuer::new(params, key) }
}

/// What a client that trusts `trusted` says of a server with this certificate.
fn says(
    trusted: &Authority,
    chain: Vec<CertificateDer<'static>>,
    key: &KeyPair,
    clock_trusted: bool,
) -> Option<String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(trusted.certificate.der().clone()).unwrap();
    let ca = Path::new("/etc/meter-gateway/ca.pem");
    let verifier = Explaining::new(roots, provider.clone(), Some(ca), clock_trusted).unwrap();
    let client = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    let mut client =
        ClientConnection::new(Arc::new(client), ServerName::try_from("broker.example").unwrap()).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let mut wire = Vec::new();
    for _ in 0..8 {
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        wire.clear();
        server.process_new_packets().unwrap();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            if let Err(error) = client.process_new_packets() {
                return Some(handshake(&std::io::Error::other(error), "broker.example"));
            }
        }
        wire.clear();
    }
    assert!(!client.is_handshaking());
    None
}

fn server(
    names: &[&str],
    change: impl FnOnce(&mut CertificateParams),
    by: &Authority,
) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params =
        CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "the broker");
    change(&mut params);
    (params.signed_by(&key, &by.issuer).unwrap(), key)
}

#[test]
fn a_certificate_that_is_not_accepted_is_named_with_its_date_and_what_to_do() {
    let (ours, theirs) = (authority("Our CA"), authority("Their CA"));
    let good = server(&["broker.example"], |_| {}, &ours);
    let said =
        |made: &(rcgen::Certificate, KeyPair), clock| says(&ours, vec![made.0.der().clone()], &made.1, clock);
    assert_eq!(said(&good, true), None);

    let expired = server(&["broker.example"], |p| p.not_after = date_time_ymd(2020, 5, 1), &ours);
    let text = said(&expired, true).unwrap();
    assert!(text.contains("the broker") && text.contains("expired on 2020-05-01 00:00 UTC"), "{text}");
    assert!(!text.contains("synchronised"), "{text}");

    let later = server(&["broker.example"], |p| p.not_before = date_time_ymd(2090, 1, 1), &ours);
    let text = said(&later, false).unwrap();
    for part in ["not valid before 2090-01-01", "our clock shows", "is not synchronised", "clock right?"] {
        assert!(text.contains(part), "{text}");
    }

    let text = said(&server(&["other.example", "10.0.0.5"], |_| {}, &ours), true).unwrap();
    for part in ["other.example, 10.0.0.5", "not for `broker.example`", "mqtt.url"] {
        assert!(text.contains(part), "{text}");
    }

    let text = said(&server(&["broker.example"], |_| {}, &theirs), true).unwrap();
    for part in ["Their CA", "/etc/meter-gateway/ca.pem", "set mqtt.ca_file"] {
        assert!(text.contains(part), "{text}");
    }

    let ca = server(&["broker.example"], |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), &ours);
    let text = said(&ca, true).unwrap();
    assert!(text.contains("CA:TRUE") && text.contains("make a server certificate"), "{text}");

    // Version 1, as `openssl x509 -req` without extensions makes it. No server of rustls presents it.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ours.certificate.der().clone()).unwrap();
    let verifier = Explaining::new(roots, provider, None, true).unwrap();
    let host = ServerName::try_from("broker.example").unwrap();
    let error = verifier.verify_server_cert(&version_1(good.0.der()), &[], &host, &[], UnixTime::now());
    let text = handshake(&std::io::Error::other(error.unwrap_err()), "broker.example");
    assert!(text.contains("version 1, expected 3"), "{text}");
}

/// The same certificate with version 1 in its first field; the signature is never looked at.
fn version_1(der: &CertificateDer<'_>) -> CertificateDer<'static> {
    let mut bytes = der.to_vec();
    let at = bytes.windows(5).position(|w| w == [0xA0, 3, 2, 1, 2]).unwrap();
    bytes[at + 4] = 0;
    bytes.into()
}

#[test]
fn what_the_broker_refuses_says_which_key_to_set() {
    for (alert, hint) in [
        (rustls::AlertDescription::CertificateRequired, "set mqtt.cert_file and mqtt.key_file"),
        (rustls::AlertDescription::UnknownCA, "does not accept the certificate in mqtt.cert_file"),
    ] {
        assert!(super::alert(&Error::AlertReceived(alert)).contains(hint));
    }
}
