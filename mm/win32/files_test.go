package win32

import (
	"bytes"
	"fmt"
	"strings"
	"sync"

	"memfs/mapping"
	"memfs/mapping/image/pefile"
	"memfs/mm"
	"memfs/mm/process"
)

// testFiles is the files of a mount that no real program uses.
type testFiles struct {
	sys *mm.System

	mu     sync.Mutex
	byPath map[string]*testFile
}

func newTestFiles(sys *mm.System) *testFiles {
	return &testFiles{sys: sys, byPath: make(map[string]*testFile)}
}

// testFile is one file; each opening of it is the same value.
type testFile struct {
	*mapping.Section
	files *testFiles
	path  string // empty behind a page-file-backed section

	// guarded by files.mu
	opened int
	linked bool
}

type quietHost struct{}

func (quietHost) WriteBack(int64, int64) error  { return nil }
func (quietHost) Invalidate(int64, int64) error { return nil }
func (quietHost) Written() bool                 { return false }

// make makes a file. The lock is held.
func (t *testFiles) make(path string) *testFile {
	f := &testFile{Section: mapping.NewSection(t.sys, quietHost{}), files: t, path: path, linked: true}
	t.byPath[path] = f
	return f
}

func (t *testFiles) has(path string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byPath[path] != nil
}

func (t *testFiles) Open(_ *process.Process, path string, _ uint32, d process.Disposition) (process.File, bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.byPath[path]
	existed := f != nil
	switch {
	case f == nil && d == process.OpenExisting:
		return nil, false, process.FileNotFound
	case f != nil && d == process.CreateNew:
		return nil, true, process.FileExists
	case f == nil:
		f = t.make(path)
	}
	f.opened++
	return f, existed, nil
}

func (t *testFiles) Remove(_ *process.Process, path string) error {
	t.mu.Lock()
	f := t.byPath[path]
	delete(t.byPath, path)
	t.mu.Unlock()
	if f == nil {
		return process.FileNotFound
	}
	f.unlink()
	return nil
}

func (t *testFiles) NewSection(_ *process.Process, name string, size int64) (process.File, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := &testFile{Section: mapping.NewSection(t.sys, quietHost{}), files: t, opened: 1, linked: name != ""}
	return f, f.Truncate(size)
}

// close removes every file.
func (t *testFiles) close() {
	t.mu.Lock()
	all := t.byPath
	t.byPath = make(map[string]*testFile)
	t.mu.Unlock()
	for _, f := range all {
		f.unlink()
	}
}

func (f *testFile) Path() string             { return f.path }
func (f *testFile) Measure() int64           { return f.Size() }
func (f *testFile) SetSize(size int64) error { return f.Truncate(size) }
func (f *testFile) Extend(size int64) error  { return f.Truncate(max(size, f.Size())) }
func (f *testFile) Unlink()                  { f.unlink() }
func (f *testFile) Remove()                  { _ = f.files.Remove(nil, f.path) }
func (f *testFile) Close()                   { f.settle(func() { f.opened-- }) }
func (f *testFile) unlink()                  { f.settle(func() { f.linked = false }) }

func (f *testFile) settle(change func()) {
	f.files.mu.Lock()
	change()
	gone := f.opened == 0 && !f.linked
	f.files.mu.Unlock()
	if gone {
		f.Delete()
	}
}

// prepare does a line that makes a file before the dialogue goes on: file "/x" size=0x2000 fill=00, or pefile "/x" va=0x1000
// chars=IMAGE_SCN_MEM_READ data=c3.
func (t *testFiles) prepare(line string) error {
	words, err := split(line)
	if err != nil {
		return err
	}
	kind := words[0].text
	if len(words) < 2 || kind != "file" && kind != "pefile" {
		return fmt.Errorf("%s is not understood", line)
	}
	var size, fill uint64
	var pe pefile.Options
	for _, w := range words[2:] {
		name, value, _ := strings.Cut(w.text, "=")
		switch name {
		case "size":
			size, err = number(value, nil)
		case "fill":
			fill, err = number("0x"+value, nil)
		default:
			err = pe.Set(name, value)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", line, err)
		}
	}
	t.mu.Lock()
	f := t.make(words[1].text)
	t.mu.Unlock()
	b := bytes.Repeat([]byte{byte(fill)}, int(size))
	if kind == "pefile" {
		b = pe.File()
	}
	if err := f.Write(0, b); err != nil {
		return err
	}
	f.Forgotten()
	return nil
}
