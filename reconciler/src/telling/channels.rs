//! How each kind of receiver wants to be told.

use hmac::{Hmac, KeyInit, Mac};
use lettre::message::{Mailbox, header::ContentType};
use lettre::transport::smtp::authentication::Credentials;
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use reqwest::Client;
use serde_json::json;
use sha2::Sha256;
use strata_core::audit::Record;

use super::message::Message;
use super::{Delivery, http};
use crate::settings::{Channel, Email, Encryption};

const SMTP: std::time::Duration = std::time::Duration::from_secs(30);

/// Delivers a message. `id` is the same when the same is delivered again.
pub async fn deliver(
    client: &Client,
    channel: &Channel,
    record: &Record,
    message: &Message,
    id: &str,
) -> Delivery {
    match channel {
        Channel::Webhook { url, secret } => {
            let body = json!({
                "version": 1,
                "importance": message.importance,
                "subject": message.subject,
                "text": message.text,
                "record": record,
                "more": message.more,
            })
            .to_string();
            let mut request = client
                .post(url)
                .header("Content-Type", "application/json")
                .header("X-Strata-Event", record.event.kind())
                .header("X-Strata-Delivery", id);
            if let Some(secret) = secret {
                match secret.read() {
                    Ok(secret) => {
                        let signature = signature(secret.expose().as_bytes(), body.as_bytes());
                        request = request.header("X-Strata-Signature-256", signature);
                    }
                    Err(error) => return later(error),
                }
            }
            http::send(request.body(body)).await
        }
        Channel::Slack { url } => {
            let url = match url.read().map_err(|error| error.to_string()).and_then(|url| {
                crate::settings::checked_url(url.expose())
                    .map_err(|_| "the address is none".to_owned())
            }) {
                Ok(url) => url,
                Err(error) => return later(error),
            };
            let text = format!("*{}*\n{}", slack(&message.subject), slack(&message.text));
            http::send(client.post(url).json_body(&json!({ "text": text }))).await
        }
        Channel::Matrix { homeserver, room, token } => {
            let token = match token.read() {
                Ok(token) => token,
                Err(error) => return later(error),
            };
            let base = format!("{homeserver}/_matrix/client/v3/rooms/");
            let Ok(mut url) = reqwest::Url::parse(&base) else {
                return later("the homeserver's address is none");
            };
            if let Ok(mut path) = url.path_segments_mut() {
                path.pop_if_empty().extend([room.as_str(), "send", "m.room.message", id]);
            }
            let body = json!({
                "msgtype": "m.notice",
                "body": format!("{}\n{}", message.subject, message.text),
            });
            http::send(client.put(url).bearer_auth(token.expose()).json_body(&body)).await
        }
        Channel::Email(email) => mail(email, message, id).await,
    }
}

fn later(why: impl ToString) -> Delivery {
    Delivery::Later { why: why.to_string(), after: None }
}

/// A JSON body without reqwest's feature for it.
pub trait JsonBody {
    fn json_body(self, value: &serde_json::Value) -> Self;
}

impl JsonBody for reqwest::RequestBuilder {
    fn json_body(self, value: &serde_json::Value) -> Self {
        self.header("Content-Type", "application/json").body(value.to_string())
    }
}

/// As GitHub signs its webhooks: `sha256=` and the HMAC of the body.
pub fn signature(secret: &[u8], body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("any length is a key");
    mac.update(body);
    let digest = mac.finalize().into_bytes();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={hex}")
}

/// What Slack would read as its own marks.
fn slack(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

async fn mail(email: &Email, message: &Message, id: &str) -> Delivery {
    let transport = match transport(email) {
        Ok(transport) => transport,
        Err(why) => return later(why),
    };
    let built = (|| {
        let from: Mailbox = email.from.parse().map_err(|error| format!("{error}"))?;
        let host = from.email.domain().to_owned();
        let mut builder = lettre::Message::builder()
            .from(from)
            .subject(message.subject.clone())
            .message_id(Some(format!("<{id}@{host}>")))
            .header(ContentType::TEXT_PLAIN);
        for to in &email.to {
            builder = builder.to(to.parse().map_err(|error| format!("{error}"))?);
        }
        builder.body(message.text.clone()).map_err(|error| error.to_string())
    })();
    let built = match built {
        Ok(built) => built,
        Err(why) => return Delivery::Refused { why },
    };
    match transport.send(built).await {
        Ok(_) => Delivery::Done { pause: None },
        // The server has read it and will not have it.
        Err(error) if error.is_permanent() => Delivery::Refused { why: error.to_string() },
        Err(error) => later(error),
    }
}

fn transport(email: &Email) -> Result<AsyncSmtpTransport<Tokio1Executor>, String> {
    type Transport = AsyncSmtpTransport<Tokio1Executor>;
    let builder = match email.encryption {
        Encryption::Tls => Transport::relay(&email.server),
        Encryption::StartTls => Transport::starttls_relay(&email.server),
        Encryption::None => Ok(Transport::builder_dangerous(&email.server)),
    };
    let mut builder =
        builder.map_err(|error| error.to_string())?.port(email.port).timeout(Some(SMTP));
    if let Some((user, password)) = &email.credentials {
        let password = password.read().map_err(|error| error.to_string())?;
        builder = builder.credentials(Credentials::new(user.clone(), password.expose().to_owned()));
    }
    Ok(builder.build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_rfc_4231() {
        let expected = "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(signature(b"Jefe", b"what do ya want for nothing?"), expected);
    }

    #[test]
    fn slack_reads_no_marks() {
        assert_eq!(slack("<!here> a & b"), "&lt;!here&gt; a &amp; b");
    }
}
