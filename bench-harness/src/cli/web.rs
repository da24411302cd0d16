//! `perjoule web`: the bench in a browser, from files that are part of this binary.

use anyhow::{Context, Result, bail};
use clap::Args;
use oxhttp::Server;
use oxhttp::model::{Body, HeaderValue, Method, Request, Response, StatusCode, header};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use super::Ended;
use crate::measure::interrupted;

pub(super) const EXAMPLES: &str = "Examples:
  perjoule web                       then open the address that it prints
  perjoule web --port 0              any free port
  perjoule web --bind 0.0.0.0        for other machines: browsers offer WebGPU to https and localhost alone, so that they
                                     need a proxy, or ssh -L 8080:localhost:8080 HOST

Nothing is sent back: records are downloaded from the page, and `perjoule compare` and `perjoule report` read them.";

/// The page's files, by name.
const PAGE: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/page.rs"));

/// How long a browser may be silent within a connection.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections at a time: a browser has six for each of its tabs.
const CONNECTIONS: usize = 256;
/// How long Ctrl-C may go unnoticed.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(crate) struct WebArgs {
    /// Port to listen on; 0 for any that is free
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    bind: IpAddr,
    /// Print the address alone
    #[arg(long)]
    quiet: bool,
}

pub(crate) fn run(args: &WebArgs) -> Result<Ended> {
    if PAGE.is_empty() {
        bail!(
            "this program was built without its page; in the sources, run `cargo xtask web`, and then `cargo build --release -p \
             perjoule-bench --features web` again"
        );
    }
    let wanted = SocketAddr::new(args.bind, args.port);
    let refused = || format!("cannot listen on {wanted}; --port 0 takes a free port");
    // which port is free is known by taking one
    let address =
        TcpListener::bind(wanted).and_then(|listener| listener.local_addr()).with_context(refused)?;
    let server = Server::new(|request| answer(request)).with_global_timeout(PATIENCE);
    let server = server.with_max_concurrent_connections(CONNECTIONS).bind(address);
    let _listening = server.spawn().with_context(refused)?;
    // browsers offer WebGPU to this name, whatever the loopback address is
    let host = if address.ip().is_loopback() { "localhost".to_string() } else { args.bind.to_string() };
    let host = if args.bind.is_ipv6() && !args.bind.is_loopback() { format!("[{host}]") } else { host };
    println!("http://{host}:{}/", address.port());
    if !args.quiet {
        if !address.ip().is_loopback() {
            eprintln!(
                "note: browsers offer WebGPU to https and localhost alone: others need a proxy or a tunnel"
            );
        }
        eprintln!("Ctrl-C ends it");
    }
    while !interrupted() {
        std::thread::sleep(LOOK);
    }
    Ok(Ended::Done)
}

/// Answers a request, on a thread of its connection.
fn answer(request: &Request<Body>) -> Response<Body> {
    let name = match request.uri().path().trim_start_matches('/') {
        "" => "index.html",
        name => name,
    };
    const TEXT: &str = "text/plain; charset=utf-8";
    let found = PAGE.iter().find(|(known, _)| *known == name);
    let (status, mime, body): (_, _, &[u8]) = match (request.method(), found) {
        (&Method::GET | &Method::HEAD, Some((name, body))) => (StatusCode::OK, mime(name), body),
        (&Method::GET | &Method::HEAD, None) => (StatusCode::NOT_FOUND, TEXT, b"there is no such file\n"),
        _ => (StatusCode::METHOD_NOT_ALLOWED, TEXT, b"files can be read here, and nothing else\n"),
    };
    let body = if request.method() == Method::HEAD { Body::empty() } else { Body::from(body) };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = [
        (header::CONTENT_TYPE, mime),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // another build may serve other files under these names
        (header::CACHE_CONTROL, "no-cache"),
    ];
    // alone in their process, pages get a finer clock
    let isolated = [
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-embedder-policy", "require-corp"),
        ("cross-origin-resource-policy", "same-origin"),
    ];
    let to = response.headers_mut();
    headers.into_iter().for_each(|(name, value)| drop(to.insert(name, HeaderValue::from_static(value))));
    isolated.into_iter().for_each(|(name, value)| drop(to.insert(name, HeaderValue::from_static(value))));
    response
}

/// The type of a file by its name's ending.
fn mime(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("wasm") => "application/wasm",
        Some("json") => "application/json",
        Some("txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::mime;

    #[test]
    fn browsers_compile_modules_only_of_their_type() {
        assert_eq!(mime("perjoule_web_bg.wasm"), "application/wasm");
        assert!(mime("page.js").starts_with("text/javascript"));
        assert!(mime("index.html").starts_with("text/html"));
        assert_eq!(mime("unknown"), "application/octet-stream");
    }
}
