package ctl

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"memfs/mm"
)

var update = flag.Bool("update", false, "write what is rendered to testdata")

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

// documents is every document there is.
func documents() map[string]*Doc {
	docs := make(map[string]*Doc)
	mount, _ := testMount()
	for _, e := range Top {
		if e.Render != nil {
			docs[e.Name] = e.Render(mount)
		}
	}
	for _, e := range PerFile {
		if e.Render != nil {
			docs["file-"+e.Name] = e.Render(testFile())
		}
	}
	for _, e := range PerDir {
		if e.Render != nil {
			docs["dir-"+strings.TrimPrefix(e.Name, ":")] = e.Render(&Directory{
				Stat: Stat{Inode: 3, Type: "directory", Links: 4}, Files: 5, Directories: 6, Others: 7, Skipped: 8, Blocks: 9,
				Sum: testFile().Info(),
			})
		}
	}
	for _, e := range PerSpecial {
		docs["special-"+e.Name] = e.Render(&Stat{Inode: 7, Type: "symlink", Links: 1})
	}
	return docs
}

func TestGolden(t *testing.T) {
	for name, doc := range documents() {
		switch name {
		case "version", "limits", "metrics": // have the Go version and the manager's own words in them
			continue
		}
		golden(t, name+".txt", render(doc, false))
		golden(t, name+".json", render(doc, true))
	}
}

// TestJSON proves of every document that its JSON is one object with distinct, stable-looking keys and the version
// first.
func TestJSON(t *testing.T) {
	key := regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)
	for name, doc := range documents() {
		text := render(doc, true)
		if !strings.HasPrefix(text, `{"v":1`) || !json.Valid([]byte(text)) {
			t.Errorf("%s: not an object with its version first:\n%s", name, text)
			continue
		}
		dec := json.NewDecoder(strings.NewReader(text))
		seen := []map[string]bool{}
		expectKey := false
		for {
			tok, err := dec.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			switch tok {
			case json.Delim('{'):
				seen, expectKey = append(seen, map[string]bool{}), true
				continue
			case json.Delim('}'):
				seen = seen[:len(seen)-1]
				expectKey = true
				continue
			case json.Delim('['):
				seen = append(seen, nil)
				expectKey = false
				continue
			case json.Delim(']'):
				seen = seen[:len(seen)-1]
				expectKey = true
				continue
			}
			top := seen[len(seen)-1]
			if top == nil || !expectKey {
				expectKey = top != nil
				continue
			}
			k := tok.(string)
			if top[k] || !key.MatchString(k) {
				t.Errorf("%s: key %q is there twice or not snake_case", name, k)
			}
			top[k] = true
			expectKey = false
		}
	}
}

// number gives each of a struct's figures a value of its own, and returns their names by value.
func number(figures any) map[string]string {
	next := uint64(1_000_003)
	names := make(map[string]string)
	v := reflect.ValueOf(figures).Elem()
	for i := range v.NumField() {
		field, name := v.Field(i), v.Type().Field(i).Name
		if field.Kind() == reflect.Array {
			for j := range field.Len() {
				field.Index(j).SetUint(next)
				names[fmt.Sprint(next)] = fmt.Sprintf("%s[%d]", name, j)
				next += 7919
			}
			continue
		}
		field.SetUint(next)
		names[fmt.Sprint(next)] = name
		next += 7919
	}
	return names
}

// TestEveryFigureIsShown: a counter or a part of the budget that is added to mm must not be forgotten here.
func TestEveryFigureIsShown(t *testing.T) {
	mount, machine := testMount()
	machine.snapshot = mm.Snapshot{}
	counters, budget := number(&machine.snapshot.Counters), number(&machine.snapshot.Budget)
	for name, missing := range map[string]map[string]string{
		render(vmstat(mount), false): counters, render(limits(mount), true): budget,
	} {
		for _, n := range regexp.MustCompile(`[0-9]+`).FindAllString(name, -1) {
			delete(missing, n)
		}
	}
	for _, name := range counters {
		t.Errorf("vmstat does not show Counters.%s", name)
	}
	for _, name := range budget {
		t.Errorf("limits.json does not show Budget.%s", name)
	}
}

func TestVersionFactsKeepTheirKeysApart(t *testing.T) {
	mount, _ := testMount()
	mount.Facts = func() [][2]string { return [][2]string{{"Kernel", "a"}, {"kernel", "b"}, {"v", "c"}, {"Größe", "d"}} }
	text, object := render(version(mount), false), render(version(mount), true)
	for _, want := range []string{"Kernel:         a\n", "kernel:         b\n", "v:              c\n", "Größe:"} {
		if !strings.Contains(text, want) {
			t.Errorf("version lacks %q:\n%s", want, text)
		}
	}
	if n := strings.Count(object, `"kernel":`); n != 1 || strings.Count(object, `"v":`) != 1 {
		t.Errorf("version.json has a key twice:\n%s", object)
	}
}

func TestLimits(t *testing.T) {
	mount, machine := testMount()
	text := render(limits(mount), false)
	if want := machine.snapshot.Budget.String(); want == "" || !strings.HasPrefix(text, want) {
		t.Errorf("limits = %q, want the budget %q first", text, want)
	}
	if !strings.HasSuffix(text, "InodesUsed:           12\nInodesMax:         34567\n") {
		t.Errorf("limits = %q, want the inodes last", text)
	}
}

func TestCheck(t *testing.T) {
	mount, machine := testMount()
	if got := render(check(mount), false); got != "ok\n" {
		t.Errorf("check = %q, want ok", got)
	}
	machine.findings = []error{errTwoLines, errors.New("frame 37: on standby but share count 1")}
	if got, want := render(check(mount), false), "first; second\nframe 37: on standby but share count 1\n"; got != want {
		t.Errorf("check = %q, want %q", got, want)
	}
	machine.findings = make([]error, maxFindings+5)
	for i := range machine.findings {
		machine.findings[i] = errors.New("x")
	}
	got := render(check(mount), false)
	if n := strings.Count(got, "\n"); n != maxFindings+1 || !strings.HasSuffix(got, "5 more findings are not shown\n") {
		t.Errorf("check of %d findings has %d lines, ending %q", len(machine.findings), n, got[len(got)-40:])
	}
}

// TestText reads documents of lengths around those of chunks, at every kind of offset, and proves that what they are
// charged is given back.
func TestText(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, length := range []int{0, 1, freeBytes, freeBytes + 1, chunkBytes - 1, chunkBytes, chunkBytes + 1, 3*chunkBytes + 17, 5 * chunkBytes} {
		want := make([]byte, length)
		for i := range want {
			want[i] = "0123456789abcdef\n"[rnd.IntN(17)]
		}
		text := new(Text)
		ledger := &fakeLedger{room: 1 << 30}
		text.ledger = ledger
		text.at = -1
		b := builder{t: text}
		for rest := want; len(rest) > 0; {
			n := min(len(rest), 1+rnd.IntN(printerBytes))
			if _, err := b.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := b.finish(); err != nil {
			t.Fatal(err)
		}
		if b.deflater != nil {
			deflaters <- b.deflater
		}
		if text.Size() != int64(length) {
			t.Errorf("length %d: Size = %d", length, text.Size())
		}
		if got, err := io.ReadAll(io.NewSectionReader(text, 0, 1<<40)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("length %d: read %d bytes, %v: not what was written", length, len(got), err)
		}
		for range 50 {
			p := make([]byte, rnd.IntN(2*chunkBytes))
			off := rnd.IntN(length + 10)
			n, err := text.ReadAt(p, int64(off))
			rest := want[min(off, length):]
			if !bytes.Equal(p[:n], rest[:min(len(p), len(rest))]) || (err == io.EOF) != (n < len(p) || off >= length) {
				t.Fatalf("length %d: ReadAt(%d bytes, %d) = %d, %v", length, len(p), off, n, err)
			}
		}
		if (ledger.held > 0) != (length > freeBytes) {
			t.Errorf("length %d: charged %d", length, ledger.held)
		}
		text.Close()
		if ledger.held != 0 {
			t.Errorf("length %d: %d bytes still charged after Close", length, ledger.held)
		}
	}
}

// TestRenderWithoutRoom: a document that the budget cannot hold is refused, and nothing stays charged.
func TestRenderWithoutRoom(t *testing.T) {
	file := testFile().File.(*fakeFile)
	file.pages = nil
	for i := range uint64(20000) {
		file.pages = append(file.pages, page(i*3, mm.StateStandby))
	}
	for _, room := range []int{0, unpackBytes, unpackBytes + 20000} {
		ledger := &fakeLedger{room: room}
		if _, err := Render(pages(&RegularFile{File: file}), false, ledger); !errors.Is(err, mm.StatusCommitmentLimit) {
			t.Errorf("room %d: err = %v, want %v", room, err, mm.StatusCommitmentLimit)
		}
		if ledger.held != 0 {
			t.Errorf("room %d: %d bytes still charged", room, ledger.held)
		}
	}
	ledger := &fakeLedger{room: 1 << 20}
	text, err := Render(pages(&RegularFile{File: file}), true, ledger)
	if err != nil {
		t.Fatal(err)
	}
	var parsed struct {
		Pages []struct{ Index, Slot uint64 }
	}
	if err := json.NewDecoder(io.NewSectionReader(text, 0, text.Size())).Decode(&parsed); err != nil {
		t.Fatal(err)
	}
	if n := len(parsed.Pages); n != len(file.pages) || parsed.Pages[n-1].Index != file.pages[n-1].Index {
		t.Errorf("pages.json has %d records, want %d", n, len(file.pages))
	}
	text.Close()
}

func TestLookup(t *testing.T) {
	for _, c := range []struct {
		name string
		row  string
		json bool
	}{
		{"info", "info", false}, {"info.json", "info", true}, {"ctl", "ctl", false}, {"ctl.json", "", false},
		{"info.json.json", "", false}, {"", "", false}, {".json", "", false}, {"inf", "", false},
	} {
		row, json := Lookup(PerFile, c.name)
		name := ""
		if row >= 0 {
			name = PerFile[row].Name
		}
		if name != c.row || json != c.json {
			t.Errorf("Lookup(%q) = %q, %t; want %q, %t", c.name, name, json, c.row, c.json)
		}
	}
	for name := range Names(Top) {
		if row, _ := Lookup(Top, name); row < 0 {
			t.Errorf("Names yields %s, which Lookup does not find", name)
		}
	}
}

// TestStream: a stream says what the document rendered at once says, in pieces of any length, and its rows are made as it
// is read.
func TestStream(t *testing.T) {
	for _, asJSON := range []bool{false, true} {
		var made int
		doc := func() *Doc {
			d := new(Doc)
			d.Table("rows", []Column{{Head: "N", Key: "n", Width: 8}}, func(yield func([]Value) bool) {
				for made = 0; made < 50000; made++ {
					if !yield([]Value{Count(uint64(made))}) {
						return
					}
				}
			})
			return d
		}
		s := NewStream(doc(), asJSON)
		var got []byte
		for size := 1; ; size = size*3%70000 + 1 {
			p := make([]byte, size)
			n, err := s.ReadAt(p, int64(len(got)))
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, p[:n]...)
			back := min(len(got), backBytes) // what was read last can be read again
			if n, err := s.ReadAt(p[:min(size, back)], int64(len(got)-back)); err != nil || !bytes.Equal(p[:n], got[len(got)-back:][:n]) {
				t.Fatalf("json %t: %d bytes back of %d: %d bytes, %v", asJSON, back, len(got), n, err)
			}
			if len(got) < printerBytes && made > 3*printerBytes {
				t.Fatalf("%d bytes read, %d rows made", len(got), made)
			}
			if n < size {
				break
			}
		}
		for _, off := range []int64{0, int64(len(got)) + 1, -1} {
			if n, err := s.ReadAt(make([]byte, 1), off); err == nil {
				t.Errorf("json %t: read %d bytes at %d", asJSON, n, off)
			}
		}
		s.Close()
		if want := render(doc(), asJSON); string(got) != want {
			t.Errorf("json %t: %d bytes, want %d, or other ones", asJSON, len(got), len(want))
		}
		s = NewStream(doc(), asJSON)
		_, _ = s.ReadAt(make([]byte, 10), 0)
		s.Close()
		if n, err := s.ReadAt(make([]byte, 10), 10); made == 50000 || n != 0 {
			t.Errorf("json %t: closed after 10 bytes, %d rows were made, %d more bytes read: %v", asJSON, made, n, err)
		}
	}
}
