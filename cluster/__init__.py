"""The logic of Prism, in the order of a request's path. Nothing here imports Ray.

``deployments`` says in which process each part runs.

The stages, none of which imports another:

    1. request     request.py      reads the client's JSON as far as Prism must               in the Router
    2. media       media/          turns picture URLs into bounded bytes with a digest        in the Router
    3. preprocess  preprocess.py   decodes, orients and resizes a picture, cuts it into patches   Preprocessor pool
    4. encode      encode/         runs the vision tower                                      VisionEncoder pool
    5. decode      decode/         runs vLLM without a vision tower, with its own OpenAI API  Decoder pool
    6. stream      stream.py       sends the answer to the client                             in the Router

Each stage pulls what it lacks: a decoder pulls embeddings from the encoders, unless it still has them, and an encoder
pulls patches from the preprocessors. Requests without pictures take stages 1, 5 and 6, and reach a Router and a decoder
alone.

What the stages share:

    config.py      the configuration, one typed tree
    checkpoint.py  the files, settings and revision of a checkpoint; the only module that downloads
    errors.py      every way a request can fail, as one tree
    messages.py    the messages between processes
    metrics.py     Prism's metrics, and how the metrics of all processes are merged
    waterfall.py   where the time of a request went, stage by stage
    deadline.py    the time by which a request must have ended
    tracing.py     a span per request and per stage, for an OpenTelemetry collector
    access_log.py  what the Router knows about a request, for its log line and the metrics

What the pools share or need besides the stages:

    queues.py         how many calls wait in a replica, and how long
    access/           API keys, and what each of them may do
    admission/        how many requests and bytes one Router takes on at a time
    routing/          which replica of a pool takes a call
    scaling/          how many replicas each pool should have, and the loads to try that on
    embeddings/       what a process keeps of embeddings, and which replica makes one that several were asked for
    health.py         finds out whether an engine, a vision tower or a preprocessor's children are stuck
    isolation/        runs the preprocess stage in child processes, and bounds what one picture may cost
    concurrency.py    runs several coroutines at the same time
    priority.py       the niceness of processes and threads that share CPU cores
    shared_memory.py  removes the shared memory that killed processes leave

    demo/          the small trained checkpoint, sample pictures, and the trainer that made it
"""
