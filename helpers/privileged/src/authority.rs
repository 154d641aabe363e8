//! Who asks, as the bus knows it, and what polkit says to that.

use std::collections::HashMap;

use netbus_helper_interface::error::Error;
use netbus_helper_interface::names;
use zbus::Connection;
use zbus::fdo::DBusProxy;
use zbus::message::{Flags, Header};
use zbus::names::{BusName, UniqueName};
use zbus::zvariant::Value;

const POLKIT: &str = "org.freedesktop.PolicyKit1";
const POLKIT_PATH: &str = "/org/freedesktop/PolicyKit1/Authority";
const POLKIT_INTERFACE: &str = "org.freedesktop.PolicyKit1.Authority";

/// polkit may ask the user for a password.
const ALLOW_USER_INTERACTION: u32 = 1;

/// What polkit judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Attach,
    AttachUsb,
    OpenRemovable,
    OpenSystem,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Attach => names::ATTACH,
            Self::AttachUsb => names::ATTACH_USB,
            Self::OpenRemovable => names::OPEN_REMOVABLE,
            Self::OpenSystem => names::OPEN_SYSTEM,
        }
    }
}

/// The user who asks.
///
/// # Errors
/// [`Error::Denied`] if the bus does not know: whoever asked is gone.
pub(crate) async fn user(connection: &Connection, header: &Header<'_>) -> Result<u32, Error> {
    let unknown = |_| Error::Denied("The bus does not know who asks".to_owned());
    let bus = DBusProxy::new(connection).await?;
    bus.get_connection_unix_user(BusName::Unique(sender(header)?.clone())).await.map_err(unknown)
}

/// Lets polkit judge whether the one who asks may do this to what `subject` names to people.
///
/// # Errors
/// [`Error::Denied`] if not; [`Error::Unsupported`] if polkit does not answer, which is no permission.
pub(crate) async fn check(
    connection: &Connection,
    header: &Header<'_>,
    action: Action,
    subject: &str,
) -> Result<(), Error> {
    let who = ("system-bus-name", HashMap::from([("name", Value::from(sender(header)?.as_str()))]));
    let details = HashMap::from([("subject", subject)]);
    let may_ask = header.primary().flags().contains(Flags::AllowInteractiveAuth);
    let flags = if may_ask { ALLOW_USER_INTERACTION } else { 0 };
    let question = (who, action.name(), details, flags, "");
    let answer = connection
        .call_method(Some(POLKIT), POLKIT_PATH, Some(POLKIT_INTERFACE), "CheckAuthorization", &question)
        .await
        .map_err(|error| Error::Unsupported(format!("polkit does not answer: {error}")))?;
    let answer = answer.body();
    let (is_authorized, is_challenge, _): (bool, bool, HashMap<String, String>) =
        answer.deserialize().map_err(|error| Error::Unsupported(format!("polkit's answer cannot be read: {error}")))?;
    decide(action, is_authorized, is_challenge)
}

fn decide(action: Action, is_authorized: bool, is_challenge: bool) -> Result<(), Error> {
    match (is_authorized, is_challenge) {
        (true, _) => Ok(()),
        (false, true) => Err(Error::Denied(format!("polkit wants a password for {}", action.name()))),
        (false, false) => Err(Error::Denied(format!("polkit does not allow {}", action.name()))),
    }
}

fn sender<'a, 'b>(header: &'a Header<'b>) -> Result<&'a UniqueName<'b>, Error> {
    header.sender().ok_or_else(|| Error::Denied("A call without a sender".to_owned()))
}
