//! A few requests to the service, over plain TCP: what any client on the network would send.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use outlast::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(10);

/// Sends requests one after the other and prints them with their answers.
pub(crate) async fn show(address: SocketAddr, client: &Client) -> anyhow::Result<()> {
    let book = r#"{"id":"order-1","item":"book"}"#;
    request(address, "POST /orders", book).await?;
    request(address, "POST /orders", book).await?;
    // The service answers as soon as the start is durable, so the order may not have run yet.
    client.wait_for_status_change("order-1", 0, Duration::from_secs(1), PATIENCE).await?;
    request(address, "GET /orders/order-1", "").await?;
    request(address, "POST /orders/order-1/approve", r#""Ada""#).await?;
    client.wait_for_orchestration("order-1", PATIENCE).await?;
    request(address, "GET /orders/order-1", "").await?;
    request(address, "POST /orders/order-2/approve", r#""Ada""#).await?;
    request(address, "POST /orders", r#"{"id":"","item":"nothing"}"#).await
}

/// One request on a connection of its own; prints the code and the body of the answer.
async fn request(address: SocketAddr, line: &str, body: &str) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let length = body.len();
    let head = format!("{line} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    let text = format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, content) = answer.split_once("\r\n\r\n").context("the answer has no end of headers")?;
    let code = head.split_whitespace().nth(1).context("the answer has no code")?;
    println!("{line} {body} -> {code} {content}");
    Ok(())
}
