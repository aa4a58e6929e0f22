"""Every limit that a peer, a file or a person can meet, by name and with its unit.

docs/protocol.md has the same table; ``tests/test_limits_documented.py`` keeps the two equal.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# --- frames and streams -------------------------------------------------------------------------
HELLO_BYTES_MAX: Final = 8 * KIB
"""Bytes of a handshake frame: nothing else is read before it is checked."""
FRAME_BYTES_MAX: Final = 64 * KIB
"""Bytes of any frame on a control stream."""
HANDSHAKE_TIMEOUT_S: Final = 10.0
"""Seconds within which both sides must have proved membership."""
DIAL_TIMEOUT_S: Final = 15.0
"""Seconds for one attempt to reach a device."""
READ_TIMEOUT_S: Final = 20.0
"""Seconds without a byte after which a peer that owes us one has stalled."""
WRITE_TIMEOUT_S: Final = 20.0
"""Seconds within which a peer must take what we send it."""
STREAMS_PER_LINK_MAX: Final = 64
"""Streams that a peer may have open at once on one link."""
FRAMES_PER_SECOND_MAX: Final = 50.0
"""Frames per second, sustained, that one peer may send on its control stream."""
FRAMES_BURST_MAX: Final = 200
"""Frames that one peer may send at once on its control stream."""
PENDING_HANDSHAKES_MAX: Final = 64
"""Incoming connections that may be between their first packet and proof of membership."""

# --- overlay ------------------------------------------------------------------------------------
NEIGHBOURS_ACTIVE_MAX: Final = 5
"""Neighbours that an agent dials and keeps, besides its hubs."""
LINKS_INCOMING_MAX: Final = 32
"""Overlay links that an agent accepts from others."""
HUB_LINKS_MAX: Final = 4096
"""Overlay links that a hub accepts."""
LAN_NEIGHBOURS_MAX: Final = 16
"""Devices that announce themselves on the own network to which an agent keeps links, besides its neighbours."""
LAN_ANNOUNCEMENTS_PER_SECOND: Final = 2.0
"""Announcements on the own network that are looked at per second, sustained."""
LAN_ANNOUNCEMENTS_BURST: Final = 128
"""Announcements on the own network that are looked at at once."""
LAN_RESOLVING_MAX: Final = 16
"""Announced devices whose details are asked for at once."""
LAN_CONTACTS_MAX: Final = 256
"""Devices that are remembered as having announced themselves on the own network."""
HUBS_ACTIVE_MAX: Final = 3
"""Hubs that an agent stays connected to."""
DIRECTORY_ENTRIES_MAX: Final = 64
"""Entries in one directory frame."""
DIRECTORY_KEPT_MAX: Final = 1024
"""Addresses of other devices that an agent remembers."""
ADDRESSES_PER_DEVICE_MAX: Final = 16
"""Socket addresses that one device may name as its own."""
DIAL_RETRY_BASE_S: Final = 5.0
"""Seconds before a device that could not be reached is dialled again; doubled each time."""
DIAL_RETRY_MAX_S: Final = 600.0
"""Seconds that such a wait grows to."""
HUB_RETRY_MAX_S: Final = 60.0
"""Seconds that it grows to for a hub that the signed metadata names."""
NOTICES_KEPT_MAX: Final = 256
"""Notices, and senders of invalid ones, that a node remembers."""
COMPARE_INTERVAL_S: Final = 30.0
"""Seconds between comparisons of versions on a link on which nothing else happened."""
CONTENT_IDS_MAX: Final = 256
"""Contents that one device may say it has or wants."""

# --- metadata -----------------------------------------------------------------------------------
TIMESTAMP_BYTES_MAX: Final = 16 * KIB
"""Bytes of timestamp.json, which is also the notice."""
METADATA_BYTES_MAX: Final = 5_000_000
"""Bytes of one metadata file (the reference client's own limit for targets)."""
DOCUMENT_BYTES_MAX: Final = 1 * MIB
"""Bytes of one manifest or deployment document."""
TORRENT_BYTES_MAX: Final = 8 * MIB
"""Bytes of one torrent file: 32 bytes a piece, so 16 GiB at pieces of 64 KiB."""
DELEGATIONS_MAX: Final = 32
"""Roles that the targets role may delegate to: releases, deployments, fleet, and teams (python-tuf's own bound)."""
DEPLOYMENTS_MAX: Final = 1024
"""Deployments that are in force at once."""
VARIANTS_MAX: Final = 256
"""Artifacts in one release."""
FILE_REQUEST_WAIT_S: Final = 10.0
"""Seconds that a node which is itself still fetching lets a neighbour wait for a file."""
FILE_RATE_MIN: Final = 1024.0
"""Bytes per second, on average, below which a neighbour that gives a file holds its receiver up."""

# --- content ------------------------------------------------------------------------------------
ARTIFACT_BYTES_MAX: Final = 64 * GIB
"""Bytes of one artifact."""
CONTENT_QUOTA_DEFAULT: Final = 8 * GIB
"""Bytes of content that an agent keeps to serve to others, unless configured."""
SWARM_PEERS_MAX: Final = 24
"""Devices with which one node exchanges content at once."""
DISK_MARGIN_BYTES: Final = 16 * MIB
"""Bytes that must stay free on the disk after a download."""

# --- membership ---------------------------------------------------------------------------------
LABELS_MAX: Final = 32
"""Labels of one device."""
LABEL_CHARS_MAX: Final = 63
"""Characters of a label's key name or value (Kubernetes' own limit)."""
CERTIFICATE_BYTES_MAX: Final = 6 * KIB
"""Bytes of what a member shows: a certificate, or an invitation, entry, receipt and the hub's certificate."""
INVITATION_BYTES_MAX: Final = 4 * KIB
"""Bytes of one invitation or certificate, its labels included."""
RECHECK_S: Final = 30.0
"""Seconds between looks at whether the memberships behind the links are still good."""
TICKET_BYTES_MAX: Final = 32 * KIB
"""Characters of a ticket."""
TICKET_UNPACKED_BYTES_MAX: Final = 256 * KIB
"""Bytes of a ticket once decompressed: most of them are the first root."""
TICKET_HUBS_MAX: Final = 8
"""Hubs named in a ticket."""

# --- selectors ----------------------------------------------------------------------------------
SELECTOR_CHARS_MAX: Final = 1024
"""Characters of a selector."""

# --- reports ------------------------------------------------------------------------------------
REPORT_BYTES_MAX: Final = 16 * KIB
"""Bytes of one signed report."""
REPORTS_CARRIED_MAX: Final = 512
"""Reports of other devices that an agent carries towards a hub."""
REPORTS_PER_REQUEST_MAX: Final = 256
"""Reports that one hub gives to another in one answer."""
REPORT_UPDATES_MAX: Final = 32
"""Updates described in one report, newest first."""

# --- installing ---------------------------------------------------------------------------------
MODULE_TIMEOUT_S: Final = 3600.0
"""Seconds that an update module may take for one state, unless the release says less."""
MODULE_OUTPUT_BYTES_MAX: Final = 64 * KIB
"""Bytes of a module's output that are kept; the rest is read and dropped."""
HEALTH_TIMEOUT_S: Final = 60.0
"""Seconds for a health check, unless the release says otherwise."""
TRANSITIONS_MAX: Final = 28
"""State transitions that one update may make before it is given up (Mender's bound)."""
ATTEMPTS_MAX: Final = 3
"""Times that one deployment is tried on a device."""
RETRY_BASE_S: Final = 30.0
"""Seconds before a deployment that failed for a passing reason is tried again; doubled each time."""
RETRY_MAX_S: Final = 3600.0
"""Seconds that such a wait grows to."""
ROLLBACK_REBOOTS_MAX: Final = 3
"""Reboots into the old version that are tried before a device is reported inconsistent."""

# --- the local API ------------------------------------------------------------------------------
API_BODY_BYTES_MAX: Final = 1 * MIB
"""Bytes of a request body other than submitted content."""
API_HEAD_BYTES_MAX: Final = 16 * KIB
"""Bytes of a request line and headers."""
API_REQUEST_TIMEOUT_S: Final = 30.0
"""Seconds in which a request must have arrived."""
API_CONNECTIONS_MAX: Final = 32
"""Connections to the local API at once."""

# --- time ---------------------------------------------------------------------------------------
CLOCK_SKEW_MAX_S: Final = 3600.0
"""Seconds between this clock and a hub's from which on the difference is reported."""
SHUTDOWN_S: Final = 5.0
"""Seconds in which every process ends cleanly when asked."""

# --- endpoints ----------------------------------------------------------------------------------
STREAM_RESET_TIMEOUT_S: Final = 1.0
"""Seconds for giving a stream up, which waits for nobody but the engine."""
REFUSAL_LINGER_S: Final = 2.0
"""Seconds that a refused peer has to read why before its connection is closed."""
LINK_WINDOW_BYTES: Final = 8 * MIB
"""Bytes that a peer may have sent on one link and that nobody has read yet."""

# --- logs ---------------------------------------------------------------------------------------
LOG_VALUE_CHARS_MAX: Final = 1024
"""Characters of one value in a log record."""
LOG_ITEMS_MAX: Final = 32
"""Items of a list or map that one log record shows."""
LOG_FILE_BYTES_DEFAULT: Final = 10 * MIB
"""Bytes at which a log file is rotated, unless configured."""
LOG_FILES_KEPT_DEFAULT: Final = 5
"""Rotated log files that are kept, unless configured."""
TUNNEL_STALL_S: Final = 120.0
"""Seconds for which either end of a tunnel may take nothing (a rate limit may hold an engine back for long)."""
LOOPBACK_ADDRESSES_MAX: Final = 65_536
"""Devices that have a loopback address of their own at once."""
FLOWS_KEPT_MAX: Final = 4096
"""Flows (device, artifact, path kind, direction) whose bytes are counted; the oldest give way."""

# --- install: modules and what is remembered ------------------------------------------------------
HISTORY_STEPS_MAX: Final = 1024
"""Steps of updates that the journal keeps, newest first."""
KILL_TIMEOUT_S: Final = 3.0
"""Seconds in which a killed module and its descendants must be gone."""
UNPACKED_BYTES_MAX: Final = 64 * GIB
"""Bytes that an archive may unpack to."""
UNPACKED_ENTRIES_MAX: Final = 1_000_000
"""Files, directories and links in an archive."""

# --- the relay ----------------------------------------------------------------------------------
RELAY_FRAME_BYTES_MAX: Final = 1 * MIB
"""Bytes of any frame that a relay client may send (the relay protocol's own bound)."""
RELAY_PAYLOAD_BYTES_MAX: Final = 64 * KIB
"""Bytes of payload in one datagram frame, a batch included (likewise)."""
RELAY_QUEUE_FRAMES: Final = 512
"""Frames that wait for one relay client; more are dropped, as a router would."""
RELAY_WRITE_TIMEOUT_S: Final = 2.0
"""Seconds in which a relay client must take one frame."""
RELAY_IDLE_S: Final = 60.0
"""Seconds of silence after which a relay client is gone: it pings every 15 s."""
RELAY_PING_S: Final = 17.0
"""Seconds between the relay's own pings to a client, on average."""
RELAY_CLIENTS_MAX: Final = 8192
"""Clients connected to one relay."""
RELAY_CONTACTS_MAX: Final = 1024
"""Devices per relay client that are told when it goes."""
RELAY_SPARES_MAX: Final = 2
"""Older connections of the same key that are kept in reserve."""
RELAY_BYTES_PER_SECOND: Final = 128 * MIB
"""Bytes per second that one relay client may send, unless configured."""
RELAY_BURST_BYTES: Final = 16 * MIB
"""Bytes that one relay client may send at once."""
RELAY_BUDGET_BURST_BYTES: Final = 1 * MIB
"""Bytes of content that may go through a relay at once before the budget holds them back."""
RELAYS_OFFERED_MAX: Final = 2
"""Relays of other agents that a device listens on while it has no hub."""
DIAL_BACK_TIMEOUT_S: Final = 5.0
"""Seconds for a connection that another device has asked for, to see whether it can be reached."""
DIAL_BACK_EVERY_S: Final = 20.0
"""Seconds between two such connections for one device."""
DIAL_BACKS_PER_SECOND: Final = 2.0
"""Such connections that a node makes per second, for all devices together."""
DIAL_BACKS_BURST: Final = 16
"""Such connections that a node makes at once."""
DIAL_BACK_ASKED_MAX: Final = 3
"""Devices that are asked, in one round, to try a relay of ours."""
RELAY_PROVE_EVERY_S: Final = 300.0
"""Seconds between rounds, when nothing has changed."""
RELAY_GUEST_BYTES_PER_SECOND: Final = 64 * KIB
"""Bytes per second of a client that is no member yet and may speak to the hub only, in order to join."""
HANDSHAKE_BYTES_MAX: Final = 256 * KIB
"""Bytes of UDP payload that a peer may send before it has proved membership: TLS, a hello, and retransmissions."""
HANDSHAKE_CHECK_S: Final = 0.1
"""Seconds between looks at how much a peer without proof of membership has sent."""
ENDPOINT_CLOSE_S: Final = 1.0
"""Seconds that an endpoint waits for its peers to confirm that it closes."""
HTTP_RATE_MIN: Final = 1024.0
"""Bytes per second, on average, below which an HTTP server is taken to hold its client up."""
STUN_ANSWERS_PER_SECOND: Final = 200.0
"""Answers to STUN questions that a hub gives per second, sustained and at once."""
