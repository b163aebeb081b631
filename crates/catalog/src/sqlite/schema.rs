//! The tables, and the numbers by which a file says that it has them.

use model::{Error, Kind, Result};
use sqlx::SqliteConnection;

use super::connections::Connections;
use super::failure::Failure;

/// The format that this code reads and writes: SQLite's `user_version`.
pub(super) const FORMAT: i64 = 3;

/// SQLite's `application_id`: `lard` in ASCII.
pub(super) const APPLICATION_ID: i64 = 0x6c61_7264;

const OPERATION: &str = "open the catalog";

/// What a file says it is.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Empty,
    Ready,
}

/// Makes sure that the file is there, and a catalog of this format.
pub(super) fn require(connections: &Connections) -> Result<()> {
    let file = connections.file();
    let name = file.display().to_string();
    let exists = file.try_exists().map_err(|error| Error::io(OPERATION, name.clone(), error))?;
    let missing = |reason: &str| {
        Error::new(Kind::Corrupt, OPERATION, name.clone())
            .because(reason)
            .hint("`larder scrub --rebuild` makes it anew from the packs")
    };
    if !exists {
        return Err(missing("the file is missing"));
    }
    match connections.read(OPERATION, async |c| state(c, &name).await)? {
        State::Ready => Ok(()),
        State::Empty => Err(missing("the file is empty")),
    }
}

/// Makes sure that the file is a catalog of this format; makes it one if it is absent or empty.
pub(super) fn prepare(connections: &Connections) -> Result<()> {
    let file = connections.file();
    let exists = file
        .try_exists()
        .map_err(|error| Error::io(OPERATION, file.display().to_string(), error))?;
    let name = file.display().to_string();
    if exists && connections.read(OPERATION, async |c| state(c, &name).await)? == State::Ready {
        return Ok(());
    }
    connections.create(OPERATION, async |connection| {
        // Another process may have been quicker.
        if state(connection, &name).await? == State::Empty {
            sqlx::raw_sql(include_str!("schema.sql")).execute(&mut *connection).await?;
            let stamp =
                format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(stamp)).execute(&mut *connection).await?;
        }
        Ok(())
    })
}

async fn state(connection: &mut SqliteConnection, name: &str) -> Result<State, Failure> {
    let (application, format, tables): (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT application_id FROM pragma_application_id),
                (SELECT user_version FROM pragma_user_version),
                (SELECT count(*) FROM sqlite_schema)",
    )
    .fetch_one(connection)
    .await?;
    let refused = |reason: String| Error::new(Kind::Refused, OPERATION, name).because(reason);
    match (application, format, tables) {
        (0, 0, 0) => Ok(State::Empty),
        (APPLICATION_ID, FORMAT, _) => Ok(State::Ready),
        (APPLICATION_ID, newer, _) if newer > FORMAT => {
            let reason = format!("its format {newer} is newer than this larder knows ({FORMAT})");
            Err(refused(reason).hint("use a newer larder").into())
        }
        (APPLICATION_ID, other, _) => {
            let reason = format!("its format {other} is from before the first release");
            Err(refused(reason).hint("make a new repository and import the images again").into())
        }
        _ => Err(refused("it is a database of another program".to_string()).into()),
    }
}
