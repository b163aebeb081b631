//! The connections to the file: one that writes, a few that read.
//!
//! ```text
//! callers' threads ──┬─ write ── mutex ── one connection ── BEGIN IMMEDIATE .. COMMIT
//!                    └─ read ─── at most READERS_MAX connections, opened when first needed
//! ```
//!
//! **Invariants**: one transaction of this process writes at a time; other processes wait in SQLite
//! (`BUSY_TIMEOUT`). Readers see the state of the last commit and never wait for the writer, nor it
//! for them, because the journal is a write-ahead log.
//!
//! **Failure**: work that fails is rolled back. A connection of which nobody knows the state is
//! thrown away, and the next caller opens another. A process that dies leaves its log behind, which
//! the next one that opens the file replays.

use std::ops::AsyncFnOnce;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use model::{Error, Kind, Result};
use sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use super::failure::Failure;

/// How many connections read at most; more callers wait their turn.
const READERS_MAX: usize = 4;

/// How long a writer waits for other processes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

/// What the log is cut down to when it starts anew, in bytes. It grows to about 4 MiB (1,000 pages)
/// before SQLite copies it into the file.
const LOG_LEN_KEPT: &str = "1048576";

/// What each connection keeps of the file's pages: 8 MiB, in SQLite's way of saying KiB.
const PAGE_CACHE: &str = "-8192";

/// How many rows a connection's thread reads ahead of the caller. Each time one waits for the other
/// costs as much as some rows.
const ROWS_AHEAD: usize = 1024;

/// How many free pages one transaction gives back: 4 MiB.
const PAGES_PER_VACUUM: u32 = 1024;

/// Copies the log into the file and cuts it, unless that would have to wait for others.
const CHECKPOINT: &str = "PRAGMA busy_timeout = 0; PRAGMA wal_checkpoint(TRUNCATE)";

/// All connections of one catalog to its file.
pub(super) struct Connections {
    file: PathBuf,
    writer: Mutex<Option<SqliteConnection>>,
    readers: Mutex<Readers>,
    reader_returned: Condvar,
}

#[derive(Default)]
struct Readers {
    idle: Vec<SqliteConnection>,
    open_count: usize,
}

impl Connections {
    /// Connections to a file, none of them open yet.
    pub(super) fn new(file: &Path) -> Result<Self> {
        let unusable = |error| Error::io("open the catalog", file.display().to_string(), error);
        // SQLite takes a path that starts with `file:` for a URI; an absolute one never does.
        let absolute = std::path::absolute(file).map_err(unusable)?;
        Ok(Connections {
            file: absolute,
            writer: Mutex::new(None),
            readers: Mutex::default(),
            reader_returned: Condvar::new(),
        })
    }

    /// The file, as an absolute path.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Runs work in one transaction that may write. All of it is durable when this returns, or
    /// nothing of it has happened.
    pub(super) fn write<T>(
        &self,
        operation: &'static str,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, Failure>,
    ) -> Result<T> {
        let mut writer = lock(&self.writer);
        wait_for(async {
            let mut connection = match writer.take() {
                Some(connection) => connection,
                None => self.options().connect().await?,
            };
            let (outcome, sound) = in_transaction(&mut connection, work).await;
            if sound {
                *writer = Some(connection);
            }
            outcome
        })
        .map_err(|failure| failure.into_error(operation, &self.file))
    }

    /// As [`Connections::write`], but does not wait for the disk: a later transaction that does makes
    /// this one durable too, since the log is written in order. For what means nothing after power
    /// loss, such as that somebody is at work.
    pub(super) fn write_without_sync<T>(
        &self,
        operation: &'static str,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, Failure>,
    ) -> Result<T> {
        let mut writer = lock(&self.writer);
        wait_for(async {
            let mut connection = match writer.take() {
                Some(connection) => connection,
                None => self.options().connect().await?,
            };
            sqlx::raw_sql("PRAGMA synchronous = NORMAL").execute(&mut connection).await?;
            let (outcome, sound) = in_transaction(&mut connection, work).await;
            let restored =
                sqlx::raw_sql("PRAGMA synchronous = FULL").execute(&mut connection).await;
            // One that might not wait for the disk again is thrown away.
            if sound && restored.is_ok() {
                *writer = Some(connection);
            }
            outcome
        })
        .map_err(|failure| failure.into_error(operation, &self.file))
    }

    /// Runs work that only reads. Each statement sees one state of the catalog; two statements may
    /// see two.
    pub(super) fn read<T>(
        &self,
        operation: &'static str,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, Failure>,
    ) -> Result<T> {
        let mut place = self.reader();
        wait_for(async {
            let mut connection = match place.connection.take() {
                Some(connection) => connection,
                None => self.options().pragma("query_only", "ON").connect().await?,
            };
            let outcome = work(&mut connection).await;
            if !outcome.as_ref().is_err_and(Failure::spoils_connection) {
                place.connection = Some(connection);
            }
            outcome
        })
        .map_err(|failure| failure.into_error(operation, &self.file))
    }

    /// Makes the file if there is none, empty and with the settings that must precede its first
    /// table, then runs work in a transaction that may write.
    pub(super) fn create<T>(
        &self,
        operation: &'static str,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, Failure>,
    ) -> Result<T> {
        let folder_path = self.file.parent().unwrap_or(Path::new("/"));
        let failed = |error| Error::io(operation, self.file.display().to_string(), error);
        // Changing a file's journal mode ignores the busy timeout, so creators take turns here. The
        // folder is what is locked: closing a second descriptor of the file itself would drop
        // SQLite's own locks on it.
        let folder = std::fs::File::open(folder_path).map_err(failed)?;
        folder.lock().map_err(failed)?;
        let options = self
            .options()
            .create_if_missing(true)
            .auto_vacuum(SqliteAutoVacuum::Incremental)
            .journal_mode(SqliteJournalMode::Wal);
        let opened = wait_for(options.connect());
        *lock(&self.writer) =
            Some(opened.map_err(|e| Failure::from(e).into_error(operation, &self.file))?);
        let done = self.write(operation, work)?;
        folder.sync_all().map_err(failed)?;
        Ok(done)
    }

    /// Gives free pages back to the file system, a few at a time, so that no writer waits long.
    pub(super) fn compact(&self) -> Result<()> {
        let operation = "compact the catalog";
        loop {
            let free: i64 = self.write(operation, async |connection| {
                let vacuum = format!("PRAGMA incremental_vacuum({PAGES_PER_VACUUM})");
                sqlx::raw_sql(sqlx::AssertSqlSafe(vacuum)).fetch_all(&mut *connection).await?;
                let count = "SELECT freelist_count FROM pragma_freelist_count";
                Ok(sqlx::query_scalar(count).fetch_one(connection).await?)
            })?;
            if free == 0 {
                break;
            }
        }
        // The file shrinks when the log is copied into it. Whoever reads right now puts that off. The
        // connection is closed after it, because it no longer waits for anybody.
        if let Some(mut writer) = lock(&self.writer).take() {
            wait_for(async {
                let _ = sqlx::raw_sql(CHECKPOINT).execute(&mut writer).await;
                let _ = writer.close().await;
            });
        }
        Ok(())
    }

    fn options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.file)
            .create_if_missing(false)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("journal_size_limit", LOG_LEN_KEPT)
            .pragma("cache_size", PAGE_CACHE)
            .row_buffer_size(ROWS_AHEAD)
            .thread_name(|_| "catalog".to_string())
            .disable_statement_logging()
    }

    /// A place among the readers, with an idle connection if there is one. Waits for a place.
    fn reader(&self) -> ReaderPlace<'_> {
        let full =
            |readers: &mut Readers| readers.idle.is_empty() && readers.open_count == READERS_MAX;
        let mut readers = self
            .reader_returned
            .wait_while(lock(&self.readers), full)
            .unwrap_or_else(PoisonError::into_inner);
        let connection = readers.idle.pop();
        if connection.is_none() {
            readers.open_count += 1;
        }
        ReaderPlace { connections: self, connection }
    }
}

impl Drop for Connections {
    /// Copies the log into the file and closes. Whoever closes last removes the log.
    fn drop(&mut self) {
        let writer = lock(&self.writer).take();
        let idle = std::mem::take(&mut lock(&self.readers).idle);
        // Failing here loses nothing: what was acknowledged is in the log, durable.
        wait_for(async {
            for reader in idle {
                let _ = reader.close().await;
            }
            if let Some(mut writer) = writer {
                let _ = sqlx::raw_sql(CHECKPOINT).execute(&mut writer).await;
                let _ = writer.close().await;
            }
        });
    }
}

/// One of the places among the readers; given back when dropped.
struct ReaderPlace<'a> {
    connections: &'a Connections,
    connection: Option<SqliteConnection>,
}

impl Drop for ReaderPlace<'_> {
    fn drop(&mut self) {
        let mut readers = lock(&self.connections.readers);
        match self.connection.take() {
            Some(connection) => readers.idle.push(connection),
            None => readers.open_count -= 1,
        }
        self.connections.reader_returned.notify_one();
    }
}

/// Runs work between BEGIN IMMEDIATE and COMMIT. Also returns whether the connection may be used
/// again.
async fn in_transaction<T>(
    connection: &mut SqliteConnection,
    work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, Failure>,
) -> (Result<T, Failure>, bool) {
    let mut transaction = match connection.begin_with("BEGIN IMMEDIATE").await {
        Ok(transaction) => transaction,
        Err(error) => {
            let failure = Failure::from(error);
            let sound = !failure.spoils_connection();
            return (Err(failure), sound);
        }
    };
    match work(&mut transaction).await {
        Ok(done) => match transaction.commit().await {
            Ok(()) => (Ok(done), true),
            Err(error) => (Err(error.into()), false),
        },
        Err(failure) => {
            let rolled_back = transaction.rollback().await.is_ok();
            let sound = rolled_back && !failure.spoils_connection();
            (Err(failure), sound)
        }
    }
}

/// Runs a future to its end on this thread, which sleeps while the connection's own thread works.
///
/// No runtime is needed, because no timer and no socket is waited for, and none is wanted: a runtime's
/// own `block_on` panics on threads that drive another one.
fn wait_for<T>(future: impl Future<Output = T>) -> T {
    struct Sleeper(Thread);
    impl Wake for Sleeper {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Sleeper(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(done) => return done,
            Poll::Pending => thread::park(),
        }
    }
}

/// Locks, also after another thread panicked: no thread leaves what is guarded half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The error for a value that a database integer cannot hold.
pub(super) fn integer(value: u64, operation: &'static str, what: &str) -> Result<i64> {
    i64::try_from(value).map_err(|_| {
        Error::new(Kind::Invalid, operation, what).because("it is more than a catalog counts")
    })
}
