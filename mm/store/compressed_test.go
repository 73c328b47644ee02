package store_test

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"memfs/mm/store"
)

// textPage is a page that compresses, the better the fewer kinds of bytes it has.
func textPage(rnd *rand.Rand, kinds int) []byte {
	page := make([]byte, store.SlotSize)
	for i := range page {
		page[i] = byte(rnd.IntN(kinds))
	}
	return page
}

func somePage(rnd *rand.Rand) []byte {
	switch rnd.IntN(4) {
	case 0:
		return bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7, byte(rnd.IntN(256))}, store.SlotSize/8)
	case 1:
		return textPage(rnd, 256) // noise
	default:
		page := textPage(rnd, 1+rnd.IntN(8))
		copy(page[rnd.IntN(store.SlotSize):], textPage(rnd, 256)[:rnd.IntN(store.SlotSize)])
		return page
	}
}

// TestCompressed plays random writes, reads and discards against a map, with each codec, and sees that all memory is back
// at the end.
func TestCompressed(t *testing.T) {
	for _, codec := range store.Codecs {
		t.Run(codec, func(t *testing.T) {
			const slots = 500
			rnd := rand.New(rand.NewPCG(1, 2))
			c := newCompressed(t, codec, 1<<20)
			if err := c.Grow(slots); err != nil {
				t.Fatal(err)
			}
			held := make(map[uint64][]byte)
			var rejected, full uint64
			for range 4000 {
				slot := rnd.Uint64N(slots)
				page, ok := held[slot]
				if ok && rnd.IntN(2) == 0 {
					got := blank(1)
					if err := c.ReadSlots(slot, got); err != nil || !bytes.Equal(got[0], page) {
						t.Fatalf("slot %d: %v, or other bytes", slot, err)
					}
					continue
				}
				if ok {
					if err := c.Discard(slot, 1); err != nil {
						t.Fatal(err)
					}
					delete(held, slot)
					continue
				}
				page = somePage(rnd)
				switch err := c.WriteSlots(slot, [][]byte{page}); {
				case err == nil:
					held[slot] = page
				case errors.Is(err, store.ErrIncompressible):
					rejected++
				case errors.Is(err, unix.ENOSPC):
					full++
				default:
					t.Fatal(err)
				}
				if u := c.Usage(); u.Pages != uint64(len(held)) || u.Memory < u.Bytes || u.Memory > 1<<20 || u.Rejected != rejected {
					t.Fatalf("usage is %+v with %d pages held, %d rejected", u, len(held), rejected)
				}
			}
			if len(held) == 0 || rejected == 0 {
				t.Fatalf("%d pages held, %d rejected: the test needs both", len(held), rejected)
			}
			if err := c.Discard(0, slots); err != nil {
				t.Fatal(err)
			}
			if u := c.Usage(); u.Pages != 0 || u.Memory != 0 || u.Bytes != 0 || u.Same != 0 {
				t.Errorf("usage is %+v when all is discarded", u)
			}
		})
	}
}

func newCompressed(t *testing.T, codec string, memory uint64) *store.Compressed {
	t.Helper()
	c, err := store.NewCompressed(codec, memory)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// TestCompressedFull: a store without memory left says so and keeps what it has.
func TestCompressedFull(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	c := newCompressed(t, "s2", 64<<10)
	if err := c.Grow(1000); err != nil {
		t.Fatal(err)
	}
	var held [][]byte
	for slot := uint64(0); ; slot++ {
		page := textPage(rnd, 4)
		err := c.WriteSlots(slot, [][]byte{page})
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, page)
	}
	if len(held) < 20 {
		t.Errorf("64 KiB held %d pages only", len(held))
	}
	for slot, page := range held {
		got := blank(1)
		if err := c.ReadSlots(uint64(slot), got); err != nil || !bytes.Equal(got[0], page) {
			t.Fatalf("slot %d: %v, or other bytes", slot, err)
		}
	}
	if err := c.ReadSlots(uint64(len(held)), blank(1)); err == nil {
		t.Error("a slot that holds nothing could be read")
	}
	if err := c.WriteSlots(0, [][]byte{held[0]}); err == nil {
		t.Error("a slot that holds a page could be written")
	}
	if err := c.WriteSlots(1000, [][]byte{held[0]}); err == nil {
		t.Error("a slot outside could be written")
	}
}

// TestCompressedConcurrent has goroutines use slots of their own at once.
func TestCompressedConcurrent(t *testing.T) {
	c := newCompressed(t, "zstd", 4<<20)
	if err := c.Grow(400); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range uint64(4) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(w, 5))
			for i := range uint64(500) {
				slot, page, got := w*100+i%100, textPage(rnd, 1+int(i%4)), blank(1)
				if err := c.WriteSlots(slot, [][]byte{page}); err != nil {
					t.Error(err)
					return
				}
				if err := c.ReadSlots(slot, got); err != nil || !bytes.Equal(got[0], page) {
					t.Errorf("slot %d: %v, or other bytes", slot, err)
				}
				if err := c.Discard(slot, 1); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if u := c.Usage(); u.Memory != 0 {
		t.Errorf("left over: %+v", u)
	}
}

// benchPages is how many pages a data set of BenchmarkCompressed has.
const benchPages = 512

// dataSets are pages as mounts have them: text, which is the sources of this module, and a program, which is the test itself.
func dataSets(b *testing.B) map[string][][]byte {
	b.Helper()
	var text []byte
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") {
			var source []byte
			source, err = os.ReadFile(path)
			text = append(text, source...)
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		b.Fatal(err)
	}
	sets := make(map[string][][]byte)
	for name, data := range map[string][]byte{"text": text, "program": program} {
		// Spread evenly over it, for a program has its code and its tables one behind the other.
		for step, at := len(data)/store.SlotSize/benchPages, 0; len(sets[name]) < benchPages; at += max(step, 1) * store.SlotSize {
			page := make([]byte, store.SlotSize)
			copy(page, data[at%(len(data)-store.SlotSize):])
			sets[name] = append(sets[name], page)
		}
	}
	return sets
}

// BenchmarkCompressed writes pages, and reads back those that are kept: by codec and by what they hold. ratio is what is kept over
// what that takes, the share that is lost to sizes rounded up among it; kept-% is how many pages compress well enough.
func BenchmarkCompressed(b *testing.B) {
	sets := dataSets(b)
	for _, codec := range store.Codecs {
		for _, set := range []string{"text", "program"} {
			c, err := store.NewCompressed(codec, 4<<20)
			if err != nil {
				b.Fatal(err)
			}
			_ = c.Grow(benchPages)
			pages := sets[set]
			var kept []uint64
			for slot, page := range pages {
				if err := c.WriteSlots(uint64(slot), [][]byte{page}); err == nil {
					kept = append(kept, uint64(slot))
				} else if !errors.Is(err, store.ErrIncompressible) {
					b.Fatal(err)
				}
			}
			u := c.Usage()
			b.Run(codec+"/"+set+"/read", func(b *testing.B) {
				b.SetBytes(store.SlotSize)
				got := [][]byte{make([]byte, store.SlotSize)}
				for i := 0; b.Loop(); i++ {
					if err := c.ReadSlots(kept[i%len(kept)], got); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run(codec+"/"+set+"/write", func(b *testing.B) { // in place of what is there, as a full store has it
				b.SetBytes(store.SlotSize)
				for i := 0; b.Loop(); i++ {
					slot := uint64(i % len(pages))
					_ = c.Discard(slot, 1)
					_ = c.WriteSlots(slot, pages[slot:][:1]) // or it does not compress
				}
				b.ReportMetric(float64(u.Pages*store.SlotSize)/float64(u.Memory), "ratio")
				b.ReportMetric(100*float64(len(kept))/float64(len(pages)), "kept-%")
			})
			_ = c.Close()
		}
	}
}
