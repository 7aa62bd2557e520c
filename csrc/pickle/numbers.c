/* Stores the memo indices that one dump assigns for the classes of its objects; see class_plan.h.
 *
 * The entries are stored in chunks, which do not move. Once there are more than a few entries, a hash table maps plans
 * to entries.
 */
#include "class_plan.h"

#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES 4096
#define FEW 16 /* up to this number of entries there is no hash table */
#define FIRST_SLOTS 64

struct prp_numbers_chunk {
    prp_numbers_chunk *next;
    size_t used, size;
    max_align_t bytes[];
};

static size_t hash(const prp_plan *plan)
{
    return (size_t)((uintptr_t)plan * 0x9E3779B97F4A7C15ull >> 32);
}

static int grow(prp_numbers_table *table)
{
    size_t slots = table->slots ? (table->mask + 1) * 2 : FIRST_SLOTS;
    prp_numbers **made = calloc(slots, sizeof *made);
    if (!made) {
        PyErr_NoMemory();
        return -1;
    }
    for (prp_numbers *entry = table->first; entry; entry = entry->next) {
        size_t at = hash(entry->plan) & (slots - 1);
        while (made[at])
            at = (at + 1) & (slots - 1);
        made[at] = entry;
    }
    free(table->slots);
    table->slots = made;
    table->mask = slots - 1;
    return 0;
}

static prp_numbers *allocate(prp_numbers_table *table, size_t size)
{
    size = (size + sizeof(max_align_t) - 1) & ~(sizeof(max_align_t) - 1);
    prp_numbers_chunk *chunk = table->chunks;
    if (!chunk || chunk->size - chunk->used < size) {
        size_t room = size > CHUNK_BYTES ? size : CHUNK_BYTES;
        chunk = malloc(sizeof *chunk + room);
        if (!chunk) {
            PyErr_NoMemory();
            return NULL;
        }
        *chunk = (prp_numbers_chunk){.next = table->chunks, .size = room};
        table->chunks = chunk;
    }
    prp_numbers *entry = (prp_numbers *)((char *)chunk->bytes + chunk->used);
    chunk->used += size;
    return entry;
}

static void reset(prp_numbers *entry, uint64_t lives)
{
    entry->lives = lives;
    entry->class_index = 0;
    entry->keys = NULL;
    memset(entry->slots, 0, (size_t)entry->plan->nslots * sizeof *entry->slots);
}

static prp_numbers *look_up(const prp_numbers_table *table, const prp_plan *plan)
{
    prp_numbers *entry;
    if (!table->slots) {
        for (entry = table->first; entry && entry->plan != plan; entry = entry->next)
            ;
        return entry;
    }
    for (size_t at = hash(plan) & table->mask; (entry = table->slots[at]) && entry->plan != plan;)
        at = (at + 1) & table->mask;
    return entry;
}

static prp_numbers *add(prp_numbers_table *table, prp_plan *plan)
{
    if (table->count >= FEW && (table->count + 1) * 2 > table->mask && grow(table) < 0)
        return NULL;
    prp_numbers *entry = allocate(table, sizeof *entry + (size_t)plan->nslots * sizeof *entry->slots);
    if (!entry)
        return NULL;
    plan->refs++;
    Py_INCREF(plan->type); /* so that no other class can reuse its address during this dump */
    entry->plan = plan;
    entry->next = table->first;
    table->first = entry;
    table->count++;
    if (table->slots) {
        size_t at = hash(plan) & table->mask;
        while (table->slots[at])
            at = (at + 1) & table->mask;
        table->slots[at] = entry;
    }
    return entry;
}

prp_numbers *prp_numbers_find(prp_saver *s, prp_plan *plan)
{
    prp_numbers_table *table = &s->numbers;
    prp_numbers *entry = look_up(table, plan);
    bool is_new = !entry;
    if (is_new && !(entry = add(table, plan)))
        return NULL;
    if (is_new || entry->lives != s->memo.lives)
        reset(entry, s->memo.lives);
    table->recent[plan->id % PRP_RECENT_NUMBERS] = entry;
    return entry;
}

void prp_numbers_clear(prp_saver *s)
{
    prp_numbers_table *table = &s->numbers;
    /* Empty the table before releasing the references, because their release may run finalizers. */
    prp_numbers *entry = table->first;
    prp_numbers_chunk *kept = table->chunks;
    table->first = NULL;
    table->chunks = NULL;
    if (table->count == 1) /* true for most dumps of a small object */
        table->recent[entry->plan->id % PRP_RECENT_NUMBERS] = NULL;
    else
        memset(table->recent, 0, sizeof table->recent);
    table->count = 0;
    if (table->slots) {
        free(table->slots);
        table->slots = NULL;
        table->mask = 0;
    }
    for (; entry; entry = entry->next) {
        PyTypeObject *type = entry->plan->type;
        prp_plan_drop(entry->plan);
        Py_DECREF(type);
    }
    while (kept && kept->next) {
        prp_numbers_chunk *next = kept->next;
        free(kept);
        kept = next;
    }
    if (kept && kept->size == CHUNK_BYTES && !table->chunks) {
        kept->used = 0;
        table->chunks = kept;
    } else {
        free(kept);
    }
}

void prp_numbers_free(prp_saver *s)
{
    prp_numbers_clear(s);
    free(s->numbers.chunks);
    free(s->numbers.slots);
    memset(&s->numbers, 0, sizeof s->numbers);
}
