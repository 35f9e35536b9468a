/* Descriptions of features: the forms in which Neuronpedia hands them out, and what is none. */
#include "data.h"
#include "scratch.h"
#include "zip.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A file of layer 3; NAME.gz is packed by gzip, in one stored block, its name in the header. */
static void put(const char *name, const char *text) {
    char path[256];
    unsigned size = (unsigned)strlen(text), crc = crc32_of(0, (const unsigned char *)text, size);
    snprintf(path, sizeof path, "%s/3-gemmascope-res-4/%s", folder, name);
    FILE *file = fopen(path, "wb");
    cr_assert_not_null(file);
    if (strstr(name, ".gz") != NULL) {
        fwrite("\x1f\x8b\x08\x08\0\0\0\0\0\xff"
               "a.jsonl\0\1",
               1, 19, file);
        for (int i = 0; i < 4; i++) {
            putc((int)((i < 2 ? size : ~size) >> 8 * (i % 2) & 255), file);
        }
    }
    fwrite(text, 1, size, file);
    for (int i = 0; strstr(name, ".gz") != NULL && i < 8; i++) {
        putc((int)((i < 4 ? crc : size) >> 8 * (i % 4) & 255), file);
    }
    fclose(file);
}

static void layer_folder_new(void) {
    char path[256];
    folder_new();
    snprintf(path, sizeof path, "%s/3-gemmascope-res-4", folder);
    cr_assert_eq(mkdir(path, 0777), 0);
}

#define LAYER "\"layer\": \"3-gemmascope-res-4\", "

Test(descriptions, every_form_is_read) {
    static const struct {
        const char *name, *text;
        double density;
    } forms[] = {
        {"0-4.json",
         "[{}, {\"frac_nonzero\": 0.25, \"explanations\": [{\"description\": \"a cat\"}, "
         "{\"description\": \"a dog\"}]}, {\"explanations\": []}]",
         0.25},
        {"explanations.json",
         " \n[{" LAYER "\"index\": \"1\", \"description\": \"a cat\"}, {" LAYER
         "\"index\": 1, \"description\": \"a dog\"}]",
         0},
        {"batch-0.jsonl",
         "\n{" LAYER "\"index\": \"1\", \"description\": \"a cat\"}\r\n\n{" LAYER
         "\"index\": \"1\", \"description\": \"a dog\"}",
         0},
        {"batch-0.jsonl.gz", "{" LAYER "\"index\": \"1\", \"description\": \"a cat\"}\n", 0},
        {"0-4.json.gz", "[{}, {\"explanations\": [{\"description\": \"a cat\"}]}]", 0},
    };
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        Arena *arena = arena_new();
        layer_folder_new();
        put(forms[i].name, forms[i].text);
        put("README.md", "not read");
        Descriptions d = descriptions_read(arena, folder, 3, 4);
        cr_assert_null(d.text[0], "%s", forms[i].name);
        cr_assert_not_null(d.text[1], "%s", forms[i].name);
        cr_assert_str_eq(d.text[1], "a cat");
        cr_assert_null(d.text[2]);
        cr_assert_eq((double)d.density[1], forms[i].density);
        folder_remove();
        arena_free(arena);
    }
}

/* Densities of features and explanations lie in files of their own. */
Test(descriptions, forms_stand_beside_each_other) {
    Arena *arena = arena_new();
    layer_folder_new();
    put("0-4.json", "[{\"frac_nonzero\": 0.5, \"explanations\": []}]");
    put("batch-0.jsonl", "{\"index\": 0, \"description\": \"a cat\"}");
    Descriptions d = descriptions_read(arena, folder, 3, 4);
    cr_assert(d.text[0] != NULL && strcmp(d.text[0], "a cat") == 0 && d.density[0] == 0.5f);
    folder_remove();
    arena_free(arena);
}

static Error refusal(void) {
    Error error;
    ATTEMPT(&error, descriptions_read(arena_new(), folder, 3, 4));
    return error;
}

Test(descriptions, what_is_none_is_refused) {
    static const struct {
        const char *name, *text, *says;
    } bad[] = {
        {"README.md", "[]", "no descriptions of features: expected START-END.json"},
        {"0-4.json", "[]", "no descriptions of features"},
        {"0-4.json", "[{\"index\": 0, \"text\": \"a cat\"}]", "no descriptions of features"},
        {"all.json", "[{\"description\": \"a cat\"}]", "all.json: a feature without 'index'"},
        {"batch-0.jsonl", "\n{\"description\": \"a cat\"}", "batch-0.jsonl:2: a feature without"},
        {"batch-0.jsonl", "{\"index\": 4, \"description\": \"a cat\"}", "outside the SAE's 4"},
        {"3-4.json", "[{\"explanations\": []}, {\"explanations\": []}]", "feature 4 is outside"},
        {"batch-0.jsonl", "{\"index\": 0, \"layer\": \"2-x\", \"description\": \"a cat\"}",
         "feature 0 is of layer '2-x', but its folder of layer 3"},
        {"batch-0.jsonl", "{\"index\": 0,", "batch-0.jsonl:1"},
        {"batch-0.jsonl.gz", "{\"index\": 0,", "batch-0.jsonl.gz:1"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        layer_folder_new();
        put(bad[i].name, bad[i].text);
        Error error = refusal();
        cr_assert_eq(error.status, STATUS_INPUT, "%s: %s", bad[i].name, bad[i].text);
        cr_assert_not_null(strstr(error.text, bad[i].says), "%s: %s", bad[i].text, error.text);
        cr_assert_not_null(strstr(error.text, folder));
        folder_remove();
    }
}

/* Any byte of a gzip file changed, or its end cut off, gives its text or one sentence. */
Test(descriptions, damaged_gzip) {
    static const char text[] = "{\"index\": 0, \"description\": \"a cat\"}";
    Arena *arena = arena_new();
    layer_folder_new();
    put("batch-0.jsonl.gz", text);
    FileMap whole =
        file_map(arena, arena_format(arena, "%s/3-gemmascope-res-4/batch-0.jsonl.gz", folder));
    size_t refused = 0;
    for (size_t at = 0; at < 2 * whole.size; at++) {
        bool cut = at >= whole.size;
        size_t size = cut ? at - whole.size : whole.size;
        unsigned char *copy = (unsigned char *)arena_copy(arena, (const char *)whole.data, size);
        copy[cut ? size : at] ^= cut ? 0 : 0x5A;
        FileMap map = {copy, size};
        volatile size_t length = 0;
        Error error;
        ATTEMPT(&error, length = gzip_unpack(arena, &map, "G").size);
        cr_assert(error.status == STATUS_OK ? length == sizeof text - 1
                                            : strncmp(error.text, "G: ", 3) == 0);
        refused += error.status != STATUS_OK;
    }
    cr_assert(refused > whole.size, "%zu refused", refused);
    folder_remove();
    arena_free(arena);
}

/* Pairs of words with one stem, and with two, by the steps of Porter's paper. */
Test(descriptions, words_of_one_stem_match) {
    static const char *const same[][2] = {{"caresses", "caress"},
                                          {"ponies", "poni"},
                                          {"agreed", "agree"},
                                          {"plastered", "plaster"},
                                          {"conflated", "conflate"},
                                          {"troubling", "trouble"},
                                          {"sized", "size"},
                                          {"hopping", "hop"},
                                          {"falling", "fall"},
                                          {"filing", "file"},
                                          {"happy", "happi"},
                                          {"relational", "relate"},
                                          {"rationalization", "ration"},
                                          {"adoption", "adopt"},
                                          {"controlling", "control"},
                                          {"CAF\xC3\x89S", "caf\xC3\x89"},
                                          {"enjoyed", "enjoy"},
                                          {"snowing", "snow"},
                                          {"yellow", "yellow"},
                                          {"tying", "ty"},
                                          {"12 34x", "34x"}};
    static const char *const other[][2] = {
        {"feed", "fe"},       {"bled", "bl"},  {"sing", "s"},      {"sky", "ski"},
        {"action", "act of"}, {"onion", "on"}, {"boxed", "bo"},    {"hissing", "his"},
        {"the of an", "the"}, {"roll", "rol"}, {"[bracket]", "{}"}};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        cr_expect(lexical_match(same[i][0], same[i][1]), "%s %s", same[i][0], same[i][1]);
    }
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
        cr_expect(!lexical_match(other[i][0], other[i][1]), "%s %s", other[i][0], other[i][1]);
    }
    char word[200] = "";
    memset(word, 'q', sizeof word - 1);
    cr_expect(lexical_match(word, word), "one is cut as the other");
}
