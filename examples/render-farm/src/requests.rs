//! Requests to the processes, as anything on the network would send them.

use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use crate::plan::Plan;

/// One picture, as it is reached over HTTP.
pub(crate) struct Remote {
    address: String,
    path: String,
}

impl Remote {
    pub(crate) fn new(address: String, picture: &str) -> Self {
        Self { address, path: format!("/pictures/{picture}") }
    }

    /// Orders the picture; again is harmless.
    pub(crate) async fn order(&self, plan: Plan) -> anyhow::Result<()> {
        self.request(Method::PUT, "", serde_json::to_vec(&plan)?).await.map(drop)
    }

    pub(crate) async fn read<T: DeserializeOwned>(&self, what: &str) -> anyhow::Result<T> {
        Ok(serde_json::from_slice(&self.bytes(what).await?)?)
    }

    pub(crate) async fn bytes(&self, what: &str) -> anyhow::Result<Bytes> {
        self.request(Method::GET, what, Vec::new()).await
    }

    /// Forgets the picture.
    pub(crate) async fn delete(&self) -> anyhow::Result<()> {
        self.request(Method::DELETE, "", Vec::new()).await.map(drop)
    }

    async fn request(&self, method: Method, what: &str, body: Vec<u8>) -> anyhow::Result<Bytes> {
        request(&self.address, (method, &format!("{}{what}", self.path)), body).await
    }
}

/// What a process says of itself there.
pub(crate) async fn ask(address: &str, path: &str) -> anyhow::Result<String> {
    Ok(String::from_utf8(request(address, (Method::GET, path), Vec::new()).await?.into())?)
}

async fn request(address: &str, (method, path): (Method, &str), body: Vec<u8>) -> anyhow::Result<Bytes> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("{address} cannot be reached"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder().method(&method).uri(path).header(HOST, address);
    let request = request.header(CONTENT_TYPE, "application/json").body(Full::new(Bytes::from(body)))?;
    let response = sender.send_request(request).await?;
    let code = response.status();
    let answer = response.into_body().collect().await?.to_bytes();
    connection.abort();
    ensure!(code.is_success(), "{method} {path}: {code} {}", String::from_utf8_lossy(&answer));
    Ok(answer)
}
