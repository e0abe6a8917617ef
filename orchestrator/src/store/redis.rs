//! `wasi:keyvalue` stores kept by a Redis server: shared by every node that names it. Each call is one script on the
//! server, so that it is done whole or not at all and the quota holds whoever writes at once. Every wait has a bound, and a
//! server that does not answer costs a call its deadline, never a service its start.
//!
//! A store is three keys: `narae:{SERVICE/STORE}:values` (a hash of the guest's keys), `:keys` (their order) and `:bytes` (what
//! they count into the quota). The braces keep them on one shard of a cluster.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use narae_runtime::keyvalue::{ENTRY_BYTES, KEYS_PER_PAGE, MAX_BATCH_BYTES, Page, Write, check_writes};
use narae_runtime::{KeyValue, KeyValueError, Task};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, IntoConnectionInfo, RedisError, Value};
use tokio::time::Instant;

use crate::model::ServiceName;

/// Until a connection stands.
const CONNECT: Duration = Duration::from_secs(1);
/// Of a whole call, with the connection if there is none.
const CALL: Duration = Duration::from_secs(2);
/// The first wait after a failed connection, doubled each time; calls in between fail at once.
const BACK_OFF: Duration = Duration::from_millis(100);
const MAX_BACK_OFF: Duration = Duration::from_secs(5);

/// The servers that stores of this node are on: one connection for each, shared.
#[derive(Default)]
pub struct RedisServers(Mutex<Vec<Weak<Server>>>);

struct Server {
    url: String,
    password: Option<String>,
    client: Client,
    link: tokio::sync::Mutex<Link>,
}

/// The connection, or when to try again.
#[derive(Default)]
struct Link {
    connection: Option<MultiplexedConnection>,
    /// Counts connections, so that a call that failed on an old one does not end a newer.
    generation: u64,
    failures: u32,
    not_before: Option<Instant>,
}

impl RedisServers {
    /// The service's store of this name. Nothing is connected before the first call.
    ///
    /// # Errors
    /// The URL is none that a client can be made of.
    pub fn store(
        &self,
        url: &str,
        password: Option<&str>,
        service: &ServiceName,
        name: &str,
        quota_bytes: u64,
    ) -> Result<Arc<dyn KeyValue>, KeyValueError> {
        let mut servers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        servers.retain(|server| server.strong_count() > 0);
        let known = servers.iter().filter_map(Weak::upgrade);
        let found = known
            .into_iter()
            .find(|server| server.url == url && server.password.as_deref() == password);
        let server = match found {
            Some(server) => server,
            None => {
                let server = Arc::new(Server::new(url, password)?);
                servers.push(Arc::downgrade(&server));
                server
            }
        };
        let key = |what: &str| format!("narae:{{{service}/{name}}}:{what}");
        Ok(Arc::new(RedisKeyValue {
            server,
            keys: ["values", "keys", "bytes"].map(key),
            quota_bytes,
        }))
    }
}

impl Server {
    fn new(url: &str, password: Option<&str>) -> Result<Self, KeyValueError> {
        let mut info = url.into_connection_info().map_err(failed)?;
        if let Some(password) = password {
            let settings = info.redis_settings().clone().set_password(password);
            info = info.set_redis_settings(settings);
        }
        Ok(Self {
            url: url.to_owned(),
            password: password.map(str::to_owned),
            client: Client::open(info).map_err(failed)?,
            link: tokio::sync::Mutex::default(),
        })
    }

    /// The connection; one caller makes it, the others wait for that.
    async fn connection(&self) -> Result<(u64, MultiplexedConnection), KeyValueError> {
        let mut link = self.link.lock().await;
        if let Some(connection) = &link.connection {
            return Ok((link.generation, connection.clone()));
        }
        if link.not_before.is_some_and(|at| Instant::now() < at) {
            return Err(KeyValueError::Unreachable(
                "no connection; it is tried again soon".into(),
            ));
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(CALL));
        let made = self.client.get_multiplexed_async_connection_with_config(&config);
        let made = tokio::time::timeout(CONNECT, made).await;
        match made {
            Ok(Ok(connection)) => {
                link.generation += 1;
                (link.failures, link.not_before) = (0, None);
                link.connection = Some(connection.clone());
                Ok((link.generation, connection))
            }
            failure => {
                let wait = back_off(link.failures, fastrand::f64());
                link.failures = link.failures.saturating_add(1);
                link.not_before = Some(Instant::now() + wait);
                Err(KeyValueError::Unreachable(match failure {
                    Ok(Err(error)) => words(&error),
                    _ => "no connection in time".into(),
                }))
            }
        }
    }

    /// One command within its time. A connection that did not answer is not used again.
    async fn ask(&self, command: Cmd) -> Result<Value, KeyValueError> {
        let deadline = Instant::now() + CALL;
        let late = || KeyValueError::Unreachable("no answer in time".into());
        let (generation, mut connection) = tokio::time::timeout_at(deadline, self.connection())
            .await
            .map_err(|_| late())??;
        let answer = tokio::time::timeout_at(deadline, command.query_async::<Value>(&mut connection)).await;
        let (gone, error) = match answer {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => {
                let gone = error.is_unrecoverable_error() || error.is_io_error() || error.is_timeout();
                let words = words(&error);
                let error = if gone {
                    KeyValueError::Unreachable(words)
                } else {
                    KeyValueError::Store(words)
                };
                (gone, error)
            }
            Err(_) => (true, late()),
        };
        if gone {
            let mut link = self.link.lock().await;
            if link.generation == generation {
                link.connection = None;
            }
        }
        Err(error)
    }
}

/// Between half of the time and all of it, so that nodes do not come back together.
fn back_off(failures: u32, random: f64) -> Duration {
    let time = BACK_OFF
        .saturating_mul(2_u32.saturating_pow(failures.min(16)))
        .min(MAX_BACK_OFF);
    time.mul_f64(0.5 + random / 2.0)
}

/// The kind of the failure and the server's code; a server's own text may quote what it was sent.
fn words(error: &RedisError) -> String {
    match error.code() {
        Some(code) => format!("{} ({code})", error.category()),
        None => error.category().to_owned(),
    }
}

fn failed(error: RedisError) -> KeyValueError {
    KeyValueError::Store(words(&error))
}

fn strange() -> KeyValueError {
    KeyValueError::Store("the server's answer has another form".into())
}

struct RedisKeyValue {
    server: Arc<Server>,
    /// Values, their keys in order, bytes of the quota.
    keys: [String; 3],
    quota_bytes: u64,
}

/// Takes the quota, what an entry costs, an expectation (`-` none, `n` absent, `v` this value) with its key and value, and then
/// writes: `s` or `d`, key, value. 1 done, 0 full, -1 not what was expected.
const WRITE: &str = r"
local entry = tonumber(ARGV[2])
if ARGV[3] ~= '-' then
  local now = redis.call('HGET', KEYS[1], ARGV[4])
  if ARGV[3] == 'n' then
    if now then return -1 end
  elseif now ~= ARGV[5] then
    return -1
  end
end
local used = tonumber(redis.call('GET', KEYS[3]) or '0')
local size = used
for i = 6, #ARGV, 3 do
  if redis.call('HEXISTS', KEYS[1], ARGV[i + 1]) == 1 then
    size = size - #ARGV[i + 1] - redis.call('HSTRLEN', KEYS[1], ARGV[i + 1]) - entry
  end
  if ARGV[i] == 's' then size = size + #ARGV[i + 1] + #ARGV[i + 2] + entry end
end
if size > tonumber(ARGV[1]) and size > used then return 0 end
for i = 6, #ARGV, 3 do
  if ARGV[i] == 's' then
    redis.call('HSET', KEYS[1], ARGV[i + 1], ARGV[i + 2])
    redis.call('ZADD', KEYS[2], 0, ARGV[i + 1])
  else
    redis.call('HDEL', KEYS[1], ARGV[i + 1])
    redis.call('ZREM', KEYS[2], ARGV[i + 1])
  end
end
redis.call('SET', KEYS[3], string.format('%.0f', size))
return 1
";

/// Takes the quota, what an entry costs, the key and the number to add. The new value as text; 0 full, -2 not a number. Redis adds
/// in 64 bits, which Lua cannot.
const INCREMENT: &str = r"
local entry = tonumber(ARGV[2])
local old = redis.call('HGET', KEYS[1], ARGV[3])
local sum = redis.pcall('HINCRBY', KEYS[1], ARGV[3], ARGV[4])
if type(sum) == 'table' and sum.err then
  if string.find(sum.err, 'integer') or string.find(sum.err, 'overflow') then return -2 end
  return sum
end
local new = redis.call('HGET', KEYS[1], ARGV[3])
local used = tonumber(redis.call('GET', KEYS[3]) or '0')
local size = used + #ARGV[3] + #new + entry
if old then size = size - #ARGV[3] - #old - entry end
if size > tonumber(ARGV[1]) and size > used then
  if old then redis.call('HSET', KEYS[1], ARGV[3], old) else redis.call('HDEL', KEYS[1], ARGV[3]) end
  return 0
end
redis.call('ZADD', KEYS[2], 0, ARGV[3])
redis.call('SET', KEYS[3], string.format('%.0f', size))
return new
";

/// Takes the most bytes to bring back and the keys. Their values; 0 when there are more bytes.
const GET: &str = r"
local total, found = 0, {}
for i = 2, #ARGV do
  total = total + redis.call('HSTRLEN', KEYS[1], ARGV[i])
  if total > tonumber(ARGV[1]) then return 0 end
end
for i = 2, #ARGV do found[i - 1] = redis.call('HGET', KEYS[1], ARGV[i]) end
return found
";

impl RedisKeyValue {
    fn script(&self, text: &str) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(text).arg(self.keys.len()).arg(&self.keys);
        command
    }

    fn full(&self) -> KeyValueError {
        KeyValueError::Full {
            quota_bytes: self.quota_bytes,
        }
    }

    /// False: not what was expected.
    async fn put(&self, expected: Expected<'_>, writes: Vec<Write>) -> Result<bool, KeyValueError> {
        check_writes(&writes)?;
        // Each key once: the script counts them one by one.
        let writes: std::collections::BTreeMap<String, Option<Vec<u8>>> = writes.into_iter().collect();
        let mut command = self.script(WRITE);
        command.arg(self.quota_bytes).arg(ENTRY_BYTES);
        match expected {
            Expected::Anything => command.arg("-").arg("").arg(""),
            Expected::Absent(key) => command.arg("n").arg(key).arg(""),
            Expected::Value(key, value) => command.arg("v").arg(key).arg(value),
        };
        for (key, value) in &writes {
            let (op, value) = value.as_ref().map_or(("d", &[][..]), |value| ("s", value));
            command.arg(op).arg(key).arg(value);
        }
        match self.server.ask(command).await? {
            Value::Int(1) => Ok(true),
            Value::Int(0) => Err(self.full()),
            Value::Int(-1) => Ok(false),
            _ => Err(strange()),
        }
    }
}

enum Expected<'a> {
    Anything,
    Absent(&'a str),
    Value(&'a str, &'a [u8]),
}

fn text(value: Value) -> Result<String, KeyValueError> {
    redis::from_redis_value::<String>(value).map_err(|_| strange())
}

impl KeyValue for RedisKeyValue {
    fn get(&self, keys: Vec<String>) -> Task<'_, Result<Vec<Option<Vec<u8>>>, KeyValueError>> {
        Box::pin(async move {
            if keys.is_empty() {
                return Ok(Vec::new());
            }
            let mut command = self.script(GET);
            command.arg(MAX_BATCH_BYTES).arg(&keys);
            match self.server.ask(command).await? {
                Value::Int(0) => Err(KeyValueError::TooMany),
                Value::Array(found) if found.len() == keys.len() => found
                    .into_iter()
                    .map(|value| match value {
                        Value::Nil => Ok(None),
                        Value::BulkString(bytes) => Ok(Some(bytes)),
                        _ => Err(strange()),
                    })
                    .collect(),
                _ => Err(strange()),
            }
        })
    }

    fn write(&self, writes: Vec<Write>) -> Task<'_, Result<(), KeyValueError>> {
        Box::pin(async move { self.put(Expected::Anything, writes).await.map(drop) })
    }

    fn exists(&self, key: String) -> Task<'_, Result<bool, KeyValueError>> {
        Box::pin(async move {
            let mut command = redis::cmd("HEXISTS");
            command.arg(&self.keys[0]).arg(&key);
            match self.server.ask(command).await? {
                Value::Int(there) => Ok(there == 1),
                _ => Err(strange()),
            }
        })
    }

    fn increment(&self, key: String, delta: i64) -> Task<'_, Result<i64, KeyValueError>> {
        Box::pin(async move {
            let mut command = self.script(INCREMENT);
            command.arg(self.quota_bytes).arg(ENTRY_BYTES).arg(&key).arg(delta);
            match self.server.ask(command).await? {
                Value::Int(0) => Err(self.full()),
                Value::Int(-2) => Err(KeyValueError::NotANumber),
                sum @ Value::BulkString(_) => text(sum)?.parse().map_err(|_| strange()),
                _ => Err(strange()),
            }
        })
    }

    fn swap(&self, key: String, expected: Option<Vec<u8>>, value: Vec<u8>) -> Task<'_, Result<bool, KeyValueError>> {
        Box::pin(async move {
            let writes = vec![(key.clone(), Some(value))];
            match &expected {
                Some(expected) => self.put(Expected::Value(&key, expected), writes).await,
                None => self.put(Expected::Absent(&key), writes).await,
            }
        })
    }

    fn keys(&self, after: Option<String>) -> Task<'_, Result<Page, KeyValueError>> {
        Box::pin(async move {
            let from = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
            let mut command = redis::cmd("ZRANGEBYLEX");
            command.arg(&self.keys[1]).arg(from).arg("+");
            command.arg("LIMIT").arg(0).arg(KEYS_PER_PAGE + 1);
            let Value::Array(found) = self.server.ask(command).await? else {
                return Err(strange());
            };
            let more = found.len() > KEYS_PER_PAGE;
            let keys: Result<Vec<String>, _> = found.into_iter().take(KEYS_PER_PAGE).map(text).collect();
            let keys = keys?;
            let next = keys.last().filter(|_| more).cloned();
            Ok((keys, next))
        })
    }
}

#[cfg(test)]
mod tests;
