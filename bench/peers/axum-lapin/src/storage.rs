//! Consumes the queue: appends what has arrived, syncs it, and only then acknowledges all of it.

use std::fs::{File, OpenOptions};
use std::io::Write;

use axum_lapin::{QUEUE, Visit, connect, declare, option};
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;

/// Most visits in one append and one sync.
const BATCH: usize = 500;

/// Deliveries the broker may send ahead: a few batches, so that none waits for an acknowledgement.
const PREFETCH: u16 = 2_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut output = OpenOptions::new().create(true).append(true).open(option("--output"))?;
    let connection = connect().await?;
    let channel = connection.create_channel().await?;
    declare(&channel).await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let deliveries = channel
        .basic_consume(QUEUE.into(), "storage".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await?;
    eprintln!("writing to {}", option("--output"));

    let mut batches = deliveries.ready_chunks(BATCH);
    while let Some(batch) = batches.next().await {
        let batch = batch.into_iter().collect::<Result<Vec<_>, _>>()?;
        tokio::task::block_in_place(|| record(&mut output, &batch))?;
        if let Some(last) = batch.last() {
            last.acker.ack(BasicAckOptions { multiple: true }).await?;
        }
    }
    Err("the broker closed the channel".into())
}

fn record(output: &mut File, batch: &[Delivery]) -> Result<(), Box<dyn std::error::Error>> {
    let mut lines = Vec::with_capacity(batch.len() * 256);
    for delivery in batch {
        let visit: Visit = serde_json::from_slice(&delivery.data)?;
        writeln!(
            lines,
            "{:.7}|{}|{}|{}",
            visit.received_at,
            visit.referrer.as_deref().unwrap_or("null"),
            visit.user_agent.as_deref().unwrap_or("null"),
            visit.ip
        )?;
    }
    output.write_all(&lines)?;
    output.sync_data()?;
    Ok(())
}
