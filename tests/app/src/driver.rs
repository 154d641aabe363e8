//! The web driver's words, as far as they are needed here: JSON over HTTP, one connection a call.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

/// No call takes so long, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(90);

/// The key that the standard has for elements.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser session, here: a window of the app.
pub struct Session {
    port: u16,
    id: String,
}

/// Something on the page.
#[derive(Clone, Debug)]
pub struct Element(String);

impl Session {
    /// Has the driver on this port start a program and drive its web view.
    ///
    /// # Errors
    /// When the program does not start or shows no web view.
    pub fn start(port: u16, program: &str) -> anyhow::Result<Self> {
        let options = json!({ "webkitgtk:browserOptions": { "binary": program, "args": [] } });
        let body = json!({ "capabilities": { "alwaysMatch": options } });
        let answer = call(port, "POST", "/session", Some(&body))?;
        let id = answer["sessionId"].as_str().context("The driver names no session")?.to_owned();
        Ok(Self { port, id })
    }

    /// The elements that an XPath expression finds.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn all(&self, xpath: &str) -> anyhow::Result<Vec<Element>> {
        let found = self.post("/elements", &json!({ "using": "xpath", "value": xpath }))?;
        let found = found.as_array().context("The driver lists no elements")?;
        found.iter().map(|one| Ok(Element(one[ELEMENT].as_str().context("An element has no id")?.to_owned()))).collect()
    }

    /// The text of an element as a person sees it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn text(&self, element: &Element) -> anyhow::Result<String> {
        let text = self.call("GET", &format!("/element/{}/text", element.0), None)?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// Clicks on an element.
    ///
    /// # Errors
    /// When it is gone, hidden or covered.
    pub fn click(&self, element: &Element) -> anyhow::Result<()> {
        self.post(&format!("/element/{}/click", element.0), &json!({})).map(drop)
    }

    /// Types into an element.
    ///
    /// # Errors
    /// When it takes no text.
    pub fn type_into(&self, element: &Element, text: &str) -> anyhow::Result<()> {
        self.post(&format!("/element/{}/value", element.0), &json!({ "text": text })).map(drop)
    }

    /// Runs a script in the page and gives what it returns.
    ///
    /// # Errors
    /// When it throws.
    pub fn run(&self, script: &str) -> anyhow::Result<Value> {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Closes the window and with it the program.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn close(&self) -> anyhow::Result<()> {
        self.call("DELETE", "", None).map(drop)
    }

    fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.call("POST", path, Some(body))
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        call(self.port, method, &format!("/session/{}{path}", self.id), body)
    }
}

/// One call of the driver; gives the answer's value.
fn call(port: u16, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    let mut piece = [0; 16 * 1024];
    loop {
        if let Some(value) = complete(&answer)? {
            return judged(method, path, value);
        }
        match stream.read(&mut piece)? {
            0 => bail!("The driver ended {method} {path} without an answer"),
            length => answer.extend_from_slice(&piece[..length]),
        }
    }
}

/// The JSON of an answer, once all of it is there.
fn complete(answer: &[u8]) -> anyhow::Result<Option<Value>> {
    let text = String::from_utf8_lossy(answer);
    let Some((head, _)) = text.split_once("\r\n\r\n") else { return Ok(None) };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok()).flatten()
    });
    let length = length.context("The driver's answer has no length")?;
    let body = &answer[head.len() + 4..];
    if body.len() < length {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&body[..length])?))
}

fn judged(method: &str, path: &str, mut answer: Value) -> anyhow::Result<Value> {
    let value = answer["value"].take();
    if let Some(error) = value["error"].as_str() {
        bail!("{method} {path}: {error}: {}", value["message"].as_str().unwrap_or_default());
    }
    Ok(value)
}
