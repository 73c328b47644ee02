package mapping_test

import (
	"bytes"
	"errors"
	"testing"

	"memfs/mapping"
	"memfs/mm"
	"memfs/mm/store"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// TestModelFaults runs random operations on a file whose page file's disk fails, tears and flips what it will, on machines
// from roomy to absurdly small. A page reads as what was stored there last, or fails; a store that failed has been done or
// not; nothing else happens, and every invariant holds after each step.
func TestModelFaults(t *testing.T) {
	for _, c := range []config{
		{"16 frames", 16, 8, 4096, false, 0},
		{"300 frames, encrypted", 300, 30, 4096, true, 0},
		{"300 frames, compressed", 300, 8, 4096, false, 64 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) { runFaults(t, c) })
		})
	}
}

func runFaults(t *rapid.T, c config) {
	const pages = 80
	disk := store.NewFlaky(store.NewMem(), 1)
	s := c.startOn(t, disk)
	f := mapping.NewSection(s, nullHost{})
	var may [pages][][]byte // what each page may hold
	for i := range may {
		may[i] = [][]byte{make([]byte, page)}
	}
	if err := f.Truncate(pages * page); err != nil {
		t.Fatalf("truncate: %v", err)
	}
	ioError := func(err error) bool {
		return errors.Is(err, mm.StatusInPageError) || errors.Is(err, mm.StatusOutPageError) || errors.Is(err, mm.StatusCommitmentLimit)
	}
	read := func(t *rapid.T, i int, mustWork bool) {
		set, err := f.Read(int64(i)*page, page, make([]byte, page))
		if err != nil {
			if mustWork || !ioError(err) {
				t.Fatalf("page %d: %v", i, err)
			}
			return
		}
		defer set.Done()
		var got []byte
		for _, b := range set.Slices() {
			got = append(got, b...)
		}
		for _, m := range may[i] {
			if bytes.Equal(got, m) {
				may[i] = [][]byte{m} // it has been seen
				return
			}
		}
		t.Fatalf("page %d holds what nobody stored", i)
	}
	at := rapid.IntRange(0, pages-1)
	t.Repeat(map[string]func(*rapid.T){
		"": func(t *rapid.T) { check(t, s) },
		"faults": func(t *rapid.T) {
			disk.SetFaults(rapid.SampledFrom([][]store.Fault{
				nil, nil,
				{{Kind: store.Fail, Ops: store.OpRead, Errno: unix.EIO, Rate: 0.3}},
				{{Kind: store.Fail, Ops: store.OpWrite, Errno: unix.EIO, Rate: 0.3}},
				{{Kind: store.Fail, Ops: store.OpGrow, Errno: unix.ENOSPC}},
				{{Kind: store.Flip, Ops: store.OpRead, Rate: 0.2}},
				{{Kind: store.Torn, Ops: store.OpWrite, Errno: unix.EIO, Rate: 0.2}},
			}).Draw(t, "faults")...)
		},
		"store": func(t *rapid.T) {
			i, n := at.Draw(t, "page"), rapid.IntRange(1, 8).Draw(t, "pages")
			b := bytes.Repeat([]byte{byte(rapid.IntRange(1, 255).Draw(t, "byte"))}, min(n, pages-i)*page)
			for k := 0; k < len(b); k += 97 {
				b[k] ^= byte(k)
			}
			err := f.Write(int64(i)*page, b)
			if err != nil && !ioError(err) {
				t.Fatalf("write: %v", err)
			}
			for k := 0; k < len(b)/page; k++ {
				if m := b[k*page : (k+1)*page]; err == nil {
					may[i+k] = [][]byte{m}
				} else {
					may[i+k] = append(may[i+k], m)
				}
			}
		},
		"patch": func(t *rapid.T) {
			i, off := at.Draw(t, "page"), rapid.IntRange(0, page-10).Draw(t, "offset")
			err := f.Write(int64(i)*page+int64(off), []byte("patch"))
			if err != nil && !ioError(err) {
				t.Fatalf("patch: %v", err)
			}
			var patched [][]byte
			for _, m := range may[i] {
				p := bytes.Clone(m)
				copy(p[off:], "patch")
				patched = append(patched, p)
			}
			if err != nil {
				patched = append(patched, may[i]...)
			}
			may[i] = patched
		},
		"read":    func(t *rapid.T) { read(t, at.Draw(t, "page"), false) },
		"trim":    func(t *rapid.T) { _, _ = s.TrimAll() },
		"flush":   func(t *rapid.T) { _, _ = s.FlushModified() },
		"empty":   func(t *rapid.T) { s.EmptyStandby() },
		"combine": func(t *rapid.T) { _, _ = s.Combine() },
		"step": func(t *rapid.T) {
			s.BalanceStep()
			s.TrimStep()
			_, _ = s.WriteStep()
		},
		"punch": func(t *rapid.T) {
			i := at.Draw(t, "page")
			if err := f.Punch(int64(i)*page, page); err != nil {
				t.Fatalf("punch: %v", err)
			}
			may[i] = [][]byte{make([]byte, page)}
		},
	})
	disk.SetFaults()
	for i := range may {
		// Torn and flipped writes may have lost a page for good; then it must say so.
		read(t, i, false)
	}
	f.Delete()
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}
