//! The admin server over a real socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kanchi_runtime::{AdminServer, BuildInfo, Health, LogFormat, process, telemetry};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

async fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let length = body.len();
    let text = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn serves_probes_metrics_and_the_log_level_until_the_token_ends_it() -> anyhow::Result<()> {
    let log = telemetry::init(LogFormat::Json, "warn")?;
    let mut registry = Registry::default();
    process::register(&mut registry, BuildInfo::of("kanchi-test"));
    let health = Health::new();
    let server = AdminServer::bind("127.0.0.1:0".parse()?, Arc::new(registry), health.clone(), log.clone()).await?;
    let address = server.address();
    let token = CancellationToken::new();
    let running = tokio::spawn(server.run(token.clone()));

    assert!(request(address, "GET", "/livez", "").await?.starts_with("HTTP/1.1 200"));
    assert!(
        request(address, "GET", "/readyz", "")
            .await?
            .starts_with("HTTP/1.1 503")
    );
    health.set_ready();
    assert!(
        request(address, "GET", "/readyz", "")
            .await?
            .starts_with("HTTP/1.1 200")
    );

    let metrics = request(address, "GET", "/metrics", "").await?;
    assert!(
        metrics.contains("kanchi_build_info{component=\"kanchi-test\""),
        "{metrics}"
    );
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");

    assert!(
        request(address, "PUT", "/log-level", "info,kanchi_broker=trace")
            .await?
            .starts_with("HTTP/1.1 204")
    );
    assert_eq!(log.filter(), "info,kanchi_broker=trace");
    let refused = request(address, "PUT", "/log-level", "kanchi=loudly").await?;
    assert!(
        refused.starts_with("HTTP/1.1 400") && refused.contains("failed to parse"),
        "{refused}"
    );
    assert_eq!(log.filter(), "info,kanchi_broker=trace");

    let refused_bind = AdminServer::bind(address, Arc::new(Registry::default()), Health::new(), log).await;
    assert!(refused_bind.is_err_and(|error| error.to_string().contains(&address.to_string())));

    // A connection that stays open does not hold up the end.
    let _open = TcpStream::connect(address).await?;
    token.cancel();
    tokio::time::timeout(Duration::from_secs(10), running).await???;
    Ok(())
}
