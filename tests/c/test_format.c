/* test_format.c - headers and tables of stored objects that must be refused, also by the fast check. */
#include "format.h"
#include "harness.h"

enum { SIZE = 4096, STREAM = 100 };

static union {
    unsigned char bytes[SIZE];
    struct {
        prs_header header;
        prs_buffer_entry entry;
    } at;
} form;

/* Make the stored form of an object with one buffer of its own, which follows the stream. */
static void make(void)
{
    memset(&form, 0, sizeof form);
    prs_format_write_header(&form, SIZE, STREAM, 1);
    prs_format_write_entry(&form, 0, 192, 1000, NULL);
}

static const char *look(uint64_t size, prs_header *h, prs_buffer_entry *e)
{
    const char *why = prs_format_check_header(&form, size, h);
    if (!why && h->total != size)
        why = "it is not as long as it says";
    if (!why && h->nbuffers != 1)
        why = "it has not one buffer";
    return why ? why : prs_format_check_entry(h, form.bytes + PRS_HEADER_SIZE, 0, e);
}

/* Apply change number `which` to a form; return false if there are no more changes. Set *other if the form is valid,
 * but has no buffer of its own. */
static bool change(int which, bool *other)
{
    prs_header *h = &form.at.header;
    prs_buffer_entry *e = &form.at.entry;
    *other = false;
    switch (which) {
    case 0:
        return h->magic ^= 1, true;
    case 1:
        return h->version++, true;
    case 2:
        return h->flags = 1, true;
    case 3:
        return h->reserved = 1, true;
    case 4:
        return h->nbuffers = 2, true;
    case 5:
        return h->nbuffers = UINT32_MAX, true;
    case 6:
        return h->total--, true;
    case 7:
        return h->total++, true;
    case 8:
        return h->stream_len = SIZE - 63, true;
    case 9:
        return h->stream_len = UINT64_MAX, true;
    case 10:
        return e->off = SIZE + 1, e->len = 1, true;
    case 11:
        return e->len = SIZE - 191, true;
    case 12:
        return e->len = UINT64_MAX, true;
    case 13:
        return e->off = 163, true; /* the last byte of the stream */
    case 14:
        return e->serial = 1, true;
    case 15:
        return e->generation = 1, true;
    case 16:
        return *other = true, e->slot = 7, true;
    default:
        return false;
    }
}

TEST(what_does_not_fit_is_refused_by_both_looks)
{
    prs_header h, quick;
    prs_buffer_entry e, quick_e;
    bool other;
    make();
    CHECK_EQ(prs_format_one_buffer(&form, SIZE, &quick, &quick_e), true);
    CHECK(look(SIZE, &h, &e) == NULL);
    CHECK_MEM(&h, &quick, sizeof h);
    CHECK_MEM(&e, &quick_e, sizeof e);
    CHECK_EQ(prs_format_body(&h), 64 + STREAM);
    for (int which = 0; make(), change(which, &other); which++) {
        const char *why = look(SIZE, &h, &e);
        CHECK_MSG((why == NULL) == other, "change %d: %s", which, why ? why : "passed");
        CHECK_MSG(!prs_format_one_buffer(&form, SIZE, &quick, &quick_e), "change %d passed the short look", which);
    }
}

TEST(the_edges_fit)
{
    prs_header h;
    prs_buffer_entry e;
    static const struct {
        uint64_t off, len;
    } fits[] = {{164, 1}, {192, SIZE - 192}, {SIZE - 1, 1}, {0, 0}, {SIZE, 0}}; /* empty buffers may be anywhere */
    for (size_t i = 0; i < sizeof fits / sizeof *fits; i++) {
        make();
        form.at.entry.off = fits[i].off, form.at.entry.len = fits[i].len;
        CHECK_MSG(look(SIZE, &h, &e) == NULL && prs_format_one_buffer(&form, SIZE, &h, &e), "entry %zu", i);
    }
    for (uint64_t size = 0; size < 64; size++) {
        CHECK(!prs_format_one_buffer(&form, size, &h, &e));
        CHECK(look(size, &h, &e) != NULL);
    }
    make();
    form.at.header.total = form.at.header.stream_len = 64; /* filled by header and table: no room for a stream */
    CHECK(!prs_format_one_buffer(&form, 64, &h, &e));
    form.at.header.stream_len = form.at.entry.off = form.at.entry.len = 0;
    CHECK(prs_format_one_buffer(&form, 64, &h, &e));
}

TEST(buffers_are_placed_by_their_size)
{
    uint64_t end = 100, off;
    CHECK(prs_format_place(&end, 10, &off) && off == 128 && end == 138);
    CHECK(prs_format_place(&end, 0, &off) && off == 138 && end == 138);
    CHECK(prs_format_place(&end, PRS_PAGE_ALIGN_FROM, &off) && off == 4096 && end == 4096 + PRS_PAGE_ALIGN_FROM);
    end = UINT64_MAX - 10;
    CHECK(!prs_format_place(&end, 10, &off)); /* the alignment of the offset overflows */
    end = UINT64_MAX - 200;
    CHECK(!prs_format_place(&end, 300, &off)); /* the sum of offset and length overflows */
    form.at.entry = (prs_buffer_entry){0};
    prs_format_write_entry(&form, 0, 1, 2, &(prs_oid){.store = 9, .serial = 3, .slot = 4, .generation = 5});
    CHECK(form.at.entry.serial == 3 && form.at.entry.slot == 4 && form.at.entry.generation == 5);
}

TEST_MAIN()
