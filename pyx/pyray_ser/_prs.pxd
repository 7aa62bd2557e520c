# Declarations of the store engine. No other file declares csrc/store/prs.h and format.h, whose comments describe them.
# All functions are `noexcept nogil`: the engine does not use Python and never calls back.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp cimport bool as cbool


cdef extern from "store/prs.h" nogil:
    ctypedef struct prs_store:
        pass

    enum:
        PRS_OK
        PRS_E_SYS
        PRS_E_NOMEM
        PRS_E_FULL
        PRS_E_BACKING
        PRS_E_CLIENTS
        PRS_E_OBJECTS
        PRS_E_LOST
        PRS_E_FREED
        PRS_E_AGAIN
        PRS_E_TIMEOUT
        PRS_E_BUSY
        PRS_E_CORRUPT
        PRS_E_VERSION
        PRS_E_FOREIGN
        PRS_E_CLOSED
        PRS_E_INTR
        PRS_E_INVAL
        PRS_E_NOTFOUND
        PRS_E_EXISTS
        PRS_E_SPILLED

    ctypedef struct prs_error:
        int code
        int sys_errno
        int32_t pid
        uint64_t want
        uint64_t capacity
        uint64_t used
        char what[232]

    ctypedef struct prs_oid:
        uint64_t store
        uint64_t serial
        uint32_t slot
        uint32_t generation

    ctypedef struct prs_options:
        const char *path
        uint64_t capacity
        uint32_t max_clients
        uint32_t max_objects
        int64_t lock_timeout
        uint64_t warm_reserve
        const char *spill_dir
        uint32_t flags

    enum:
        PRS_OPEN_PID_LIVENESS
        PRS_OPEN_SPILL_DIGEST
        PRS_OPEN_SPILL_LZ4
        PRS_OPEN_SPILL_ZSTD
        PRS_OPEN_SPILL_FORM
        PRS_OPEN_VISITOR

    uint64_t prs_shrunk_from(const prs_store *store) noexcept
    int prs_create(prs_store **out, const prs_options *options, prs_error *error) noexcept
    int prs_attach_path(prs_store **out, const char *path, const prs_options *options, prs_error *error) noexcept
    int prs_attach_pid(prs_store **out, int32_t pid, int fd, uint64_t store, const prs_options *options,
                       prs_error *error) noexcept
    void prs_close(prs_store *store) noexcept
    void prs_use(prs_store *store) noexcept
    cbool prs_unuse(prs_store *store) noexcept
    cbool prs_end(prs_store *store) noexcept
    void prs_release(prs_store *store) noexcept
    void prs_close_all() noexcept
    uint64_t prs_id(const prs_store *store) noexcept
    uint64_t prs_default_capacity() noexcept
    uint64_t prs_capacity(const prs_store *store) noexcept
    void prs_chosen(const prs_store *store, prs_options *out) noexcept
    void prs_locator(prs_store *store, int32_t *pid, uint64_t *start_time, int32_t *fd) noexcept
    uint64_t prs_start_time(int32_t pid) noexcept
    int prs_list_pid(int32_t pid, uint64_t *ids, int *fds, int cap) noexcept
    int prs_client_pids(prs_store *store, int32_t *pids, int cap) noexcept
    bint prs_leave(prs_store *store) noexcept

    ctypedef struct prs_draft:
        prs_oid id
        uint64_t size
        uint64_t off
        void *dst
        void *window
        prs_store *store

    enum:
        PRS_ALLOC_WINDOW
        PRS_ALLOC_ORDERED
        PRS_ALLOC_TRY
        PRS_SMALL_MAX

    int prs_alloc(prs_store *store, uint64_t size, unsigned flags, prs_draft *draft, prs_error *error) noexcept
    int prs_write(prs_store *store, prs_draft *draft, uint64_t at, const void *src, size_t n, prs_error *error) noexcept
    int prs_write_strided(prs_store *store, prs_draft *draft, uint64_t at, const void *src, int ndim,
                          const Py_ssize_t *shape, const Py_ssize_t *strides, size_t itemsize,
                          prs_error *error) noexcept
    int prs_add_edge(prs_store *store, prs_draft *draft, const prs_oid *inner, prs_error *error) noexcept
    int prs_add_bytes_edge(prs_store *store, prs_draft *draft, const prs_oid *inner, prs_error *error) noexcept
    int prs_seal(prs_store *store, prs_draft *draft, prs_error *error) noexcept
    void prs_abort(prs_store *store, prs_draft *draft) noexcept
    void prs_abort_keep_window(prs_store *store, prs_draft *draft) noexcept
    void prs_window_close(prs_store *store, const prs_draft *draft) noexcept

    ctypedef struct prs_view:
        const uint8_t *data
        uint64_t size

    int prs_pin(prs_store *store, const prs_oid *id, prs_view *view) noexcept
    int prs_pin_named(prs_store *store, const prs_oid *id, prs_view *view) noexcept
    ctypedef enum prs_pin_kind:
        PRS_PIN_PLAIN
        PRS_PIN_NAMED

    void prs_unpin(prs_store *store, const prs_oid *id) noexcept
    int prs_ref(prs_store *store, const prs_oid *id) noexcept
    void prs_unref(prs_store *store, const prs_oid *id) noexcept
    int prs_state(prs_store *store, const prs_oid *id) noexcept
    int prs_wait(prs_store *store, const prs_oid *id, int64_t timeout) noexcept
    uint32_t prs_epoch(prs_store *store) noexcept
    int prs_wait_any(prs_store *store, const prs_oid *id) noexcept
    int prs_wait_epoch(prs_store *store, uint32_t seen, int64_t timeout) noexcept
    int prs_free(prs_store *store, const prs_oid *id, prs_error *error) noexcept
    int prs_cow_open(prs_store *store, const prs_oid *id, const prs_view *view, void **map, size_t *map_len,
                     uint8_t **data, prs_error *error) noexcept
    void prs_cow_close(void *map, size_t map_len) noexcept
    int prs_find(prs_store *store, const void *ptr, uint64_t n, prs_oid *id, uint64_t *at) noexcept

    ctypedef struct prs_token:
        uint32_t index
        uint32_t unused
        uint64_t serial

    enum:
        PRS_TOKEN_ONCE
        PRS_TOKEN_STICKY

    int prs_token_take(prs_store *store, const prs_oid *id, int kind, prs_token *token) noexcept
    int prs_token_take_noted(prs_store *store, const prs_oid *id, int kind, uint32_t note, prs_token *token) noexcept
    int prs_token_claim(prs_store *store, const prs_oid *id, const prs_token *token) noexcept
    void prs_token_drop(prs_store *store, const prs_oid *id, const prs_token *token) noexcept

    ctypedef struct prs_flight:
        prs_oid id
        prs_token token
        int kind
        int32_t sender_pid
        uint32_t note
        uint64_t size
        bint sender_alive
        bint object_gone
        uint32_t age

    int prs_flights(prs_store *store, uint32_t *cursor, prs_flight *out, int cap, prs_error *error) noexcept
    int prs_flights_end(prs_store *store, int32_t pid, int64_t min_age, prs_error *error) noexcept

    enum:
        PRS_NAME_MAX

        PRS_NAME_EPHEMERAL
        PRS_NAME_REPLACE

    ctypedef struct prs_name_info:
        uint64_t version
        uint32_t age
        bint keeps
        uint32_t uses
        uint64_t used
        uint64_t note

    int prs_name_bind(prs_store *store, const char *name, size_t len, const prs_oid *id, uint32_t flags,
                      prs_error *error) noexcept
    int prs_name_unbind(prs_store *store, const char *name, size_t len, const prs_oid *id, prs_name_info *info,
                        prs_error *error) noexcept
    int prs_name_move(prs_store *store, const char *name, size_t len, const char *to, size_t to_len,
                      prs_error *error) noexcept
    int prs_name_find(prs_store *store, const char *name, size_t len, prs_oid *id, prs_name_info *info) noexcept
    int prs_name_use(prs_store *store, const char *name, size_t len, uint32_t max_age, prs_oid *id,
                     prs_name_info *info) noexcept
    int prs_name_count(prs_store *store, const char *name, size_t len, uint32_t uses, uint64_t note) noexcept
    int prs_name_next(prs_store *store, uint32_t *cursor, const char *prefix, size_t prefix_len, char *text, prs_oid *id,
                      prs_name_info *info) noexcept

    enum:
        PRS_SPILL_RAW
        PRS_SPILL_LZ4
        PRS_SPILL_ZSTD
        PRS_SPILL_UNDIGESTED
        PRS_SPILL_XXH3
        PRS_SPILL_VICTIMS
        PRS_SPILL_ROUNDS

    ctypedef struct prs_spill_trailer:
        uint8_t codec
        uint8_t algorithm
        uint64_t size
        uint64_t stored
        uint64_t digest

    ctypedef struct prs_spill_job:
        prs_oid id
        const uint8_t *data
        uint64_t size
        uint64_t stored

    uint32_t prs_spill_form(const prs_store *store) noexcept
    int prs_spill_choose(prs_store *store, uint64_t size, int round, prs_oid *victims, prs_error *error) noexcept
    int prs_spill_begin(prs_store *store, const prs_oid *victim, prs_spill_job *job, prs_error *error) noexcept
    int prs_spill_append(prs_store *store, prs_spill_job *job, const void *src, size_t n, prs_error *error) noexcept
    int prs_spill_finish(prs_store *store, prs_spill_job *job, int codec, int algorithm, uint64_t digest,
                         prs_error *error) noexcept
    void prs_spill_cancel(prs_store *store, prs_spill_job *job) noexcept
    cbool prs_draft_in_file(const prs_store *store, const prs_draft *draft) noexcept
    int prs_draft_map(prs_store *store, const prs_draft *draft, const uint8_t **bytes, prs_error *error) noexcept
    void prs_draft_unmap(const uint8_t *bytes, uint64_t size) noexcept
    int prs_draft_finish(prs_store *store, const prs_draft *draft, int algorithm, uint64_t digest,
                         prs_error *error) noexcept

    ctypedef struct prs_restore:
        prs_oid id
        prs_spill_trailer trailer
        uint8_t *at

    int prs_restore_begin(prs_store *store, const prs_oid *id, prs_pin_kind kind, prs_restore *restore,
                          prs_error *error) noexcept
    int prs_restore_read(const prs_restore *restore, uint64_t at, void *to, size_t n) noexcept
    int prs_restore_end(prs_store *store, prs_restore *restore, prs_view *view) noexcept
    void prs_restore_cancel(prs_store *store, prs_restore *restore) noexcept

    ctypedef struct prs_stats:
        uint64_t capacity
        uint64_t used
        uint64_t reserved
        uint64_t backed
        uint64_t overhead
        uint64_t objects
        uint64_t unsealed
        uint64_t largest_free
        uint64_t slots
        uint64_t in_flight
        uint64_t edges
        uint64_t spilled
        uint64_t spilled_bytes
        uint64_t orphaned
        uint64_t serial
        uint32_t clients
        uint32_t max_clients
        uint64_t reaped
        uint64_t stolen
        uint64_t pulls
        uint64_t pulled_bytes
        uint64_t failed_pulls

    int prs_get_stats(prs_store *store, prs_stats *out) noexcept
    void prs_count_pull(prs_store *store, uint64_t nbytes) noexcept
    void prs_count_failed_pull(prs_store *store) noexcept

    ctypedef struct prs_record:
        prs_oid id
        uint64_t size
        uint64_t extent
        uint64_t off
        uint32_t state
        uint32_t ref_holders
        uint32_t pin_holders
        uint32_t tokens_and_edges
        int32_t creator_pid
        uint32_t age
        cbool freed
        cbool orphaned
        cbool spilled

    enum:
        PRS_STATE_FREE
        PRS_STATE_RESERVED
        PRS_STATE_CREATING
        PRS_STATE_SEALED
        PRS_STATE_FREEING
        PRS_STATE_SPILLING

    int32_t prs_creator(prs_store *store, const prs_oid *id) noexcept
    int prs_list(prs_store *store, uint32_t *cursor, prs_record *out, int cap) noexcept
    int prs_reap_dead(prs_store *store, int64_t min_age) noexcept
    uint64_t prs_trim(prs_store *store, uint64_t keep) noexcept
    enum:
        PRS_SPILL_DIR_MAX

    const char *prs_spill_directory(const prs_store *store) noexcept
    int prs_snapshot(prs_store **out, const char *path, char *spill_dir, prs_error *error) noexcept
    int prs_spill_count_ended(const char *directory) noexcept
    int prs_spill_clean(const char *directory) noexcept
    int prs_check(prs_store *store, prs_error *error) noexcept
    void prs_deferred_run_all(prs_store *store) noexcept
    cbool prs_is_orphan(const prs_store *store) noexcept
    void prs_count_forks() noexcept
    uint32_t prs_fork_count() noexcept

    enum:
        PRS_FAIL_KILL
        PRS_FAIL_STOP
        PRS_FAIL_ERRNO
        PRS_FAIL_HOLD

    cbool prs_failpoint_arm(const char *name, int action, int after, int value) noexcept
    const char *const *prs_failpoint_names() noexcept


cdef extern from "store/format.h" nogil:
    enum:
        PRS_FORMAT_MAGIC
        PRS_FORMAT_VERSION
        PRS_BUFFER_ALIGN
        PRS_PAGE_ALIGN
        PRS_PAGE_ALIGN_FROM
        PRS_NO_SLOT

    ctypedef struct prs_header:
        uint32_t magic
        uint16_t version
        uint16_t flags
        uint64_t total
        uint64_t stream_len
        uint32_t nbuffers
        uint32_t reserved

    ctypedef struct prs_buffer_entry:
        uint64_t off
        uint64_t len
        uint64_t serial
        uint32_t slot
        uint32_t generation

    const char *prs_format_check_header(const void *data, uint64_t have, prs_header *header) noexcept
    const char *prs_format_check_entry(const prs_header *header, const void *table, uint32_t index,
                                       prs_buffer_entry *entry) noexcept
    cbool prs_format_one_buffer(const void *data, uint64_t size, prs_header *header, prs_buffer_entry *entry) noexcept
    uint64_t prs_format_body(const prs_header *header) noexcept
    cbool prs_format_place(uint64_t *end, uint64_t len, uint64_t *off) noexcept
    void prs_format_write_header(void *dst, uint64_t total, uint64_t stream_len, uint32_t nbuffers) noexcept
    void prs_format_write_entry(void *dst, uint32_t index, uint64_t off, uint64_t len, const prs_oid *other) noexcept
