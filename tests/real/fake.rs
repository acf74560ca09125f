//! A server in this process that answers as a function says, for servers that cannot be had.

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, rt, web};
use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};

/// A request as the function sees it.
pub struct Call {
    /// `GET`, `PUT`, …
    pub method: String,
    /// Undecoded.
    pub path: String,
    /// Decoded.
    pub query: BTreeMap<String, String>,
    /// The header of this name.
    pub authorization: String,
    /// The body.
    pub body: Vec<u8>,
}

/// A running server; it ends with this value.
pub struct Fake {
    /// Where it listens.
    pub port: u16,
    handle: ServerHandle,
}

impl Fake {
    /// Serves on loopback. `answer` gives status and body.
    pub fn serve(answer: impl Fn(&Call) -> (u16, String) + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            rt::System::new().block_on(async move {
                let server = HttpServer::new(move || {
                    let answer = answer.clone();
                    App::new().default_service(web::to(move |request: HttpRequest, body: web::Bytes| {
                        let answer = answer.clone();
                        async move { respond(answer.as_ref(), &request, &body) }
                    }))
                })
                .workers(1)
                .disable_signals()
                .bind(("127.0.0.1", 0))
                .unwrap();
                let port = server.addrs()[0].port();
                let server = server.run();
                sender.send((port, server.handle())).unwrap();
                server.await.unwrap();
            });
        });
        let (port, handle) = receiver.recv().unwrap();
        Self { port, handle }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.handle.stop(false));
    }
}

fn respond(answer: &impl Fn(&Call) -> (u16, String), request: &HttpRequest, body: &[u8]) -> HttpResponse {
    let query = web::Query::<BTreeMap<String, String>>::from_query(request.query_string());
    let authorization = request
        .headers()
        .get("authorization")
        .and_then(|v| v.to_str().ok());
    let call = Call {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        query: query.map(web::Query::into_inner).unwrap_or_default(),
        authorization: authorization.unwrap_or_default().to_owned(),
        body: body.to_vec(),
    };
    let (status, text) = answer(&call);
    HttpResponse::build(status.try_into().unwrap()).body(text)
}
