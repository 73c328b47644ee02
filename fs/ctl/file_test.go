package ctl

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"memfs/mm"
)

// unfold reads a map back: the state letters of all pages that are not holes, and how many pages it shows.
func unfold(t *testing.T, text string) (states map[uint64]byte, shown uint64) {
	t.Helper()
	states = make(map[uint64]byte)
	gap := false
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if line == "*" {
			gap = true
			continue
		}
		first, letters, ok := strings.Cut(line, " ")
		index, err := strconv.ParseUint(first, 16, 64)
		if !ok || err != nil || len(letters) == 0 || len(letters) > mapLine || strings.Trim(first, "0123456789abcdef") != "" {
			t.Fatalf("line %q", line)
		}
		if gap && index < shown+2*mapLine || !gap && index != shown {
			t.Fatalf("line %q follows page %#x, gap %t", line, shown, gap)
		}
		for i := range len(letters) {
			if letters[i] != mm.StateZero {
				states[index+uint64(i)] = letters[i]
			}
		}
		gap, shown = false, index+uint64(len(letters))
	}
	if gap {
		t.Fatal("the last line is *")
	}
	return states, shown
}

// TestMap proves of files of all kinds that their map shows every page, neither more nor less, in few lines.
func TestMap(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range 400 {
		file := &fakeFile{size: rnd.Uint64N(1 << rnd.IntN(63))}
		if i%7 == 0 {
			file.size = 0
		}
		want := make(map[uint64]byte)
		last := uint64(0)
		for range rnd.IntN(20) {
			for index := last + rnd.Uint64N(1<<rnd.IntN(40)); rnd.IntN(10) > 0; index++ {
				file.pages = append(file.pages, page(index, "zASMNTP"[rnd.IntN(7)]))
				want[index] = file.pages[len(file.pages)-1].State
				last = index + 1
			}
		}
		text := render(pageMap(&RegularFile{File: file}), false)
		states, shown := unfold(t, text)
		if wantShown := max(last, (file.size+mm.PageSize-1)/mm.PageSize); shown != wantShown {
			t.Fatalf("size %d, %d pages: shows %d pages, want %d:\n%s", file.size, len(file.pages), shown, wantShown, text)
		}
		if fmt.Sprint(states) != fmt.Sprint(want) {
			t.Fatalf("size %d: shows %v, want %v", file.size, states, want)
		}
		if lines, most := strings.Count(text, "\n"), 3*len(file.pages)+3; lines > most {
			t.Fatalf("%d lines for %d pages", lines, len(file.pages))
		}
	}
}

// TestMapOfLargestFile: 8 EiB − 1 of holes but for the two ends.
func TestMapOfLargestFile(t *testing.T) {
	file := &fakeFile{size: math.MaxInt64, pages: []mm.PageInfo{page(0, mm.StatePaged), page(maxPages-1, mm.StateActive)}}
	got := render(pageMap(&RegularFile{File: file}), false)
	want := "0000000000000 P" + strings.Repeat(".", 63) + "\n*\n7ffffffffffc0 " + strings.Repeat(".", 63) + "A\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	file.pages = nil
	if n := strings.Count(render(pageMap(&RegularFile{File: file}), true), "first_page"); n != 2 {
		t.Errorf("map.json of a hole has %d records, want 2", n)
	}
}

// TestEachPageInBatches: pages are asked for in batches, and none is lost or told twice where two of them meet.
func TestEachPageInBatches(t *testing.T) {
	for _, n := range []uint64{0, 1, pageBatch - 1, pageBatch, pageBatch + 1, 3 * pageBatch} {
		file := &fakeFile{}
		for i := range n {
			file.pages = append(file.pages, page(i*i, mm.StatePaged))
		}
		var got uint64
		for p := range eachPage(file) {
			if p.Index != got*got {
				t.Fatalf("%d pages: page %d is number %d", n, got, p.Index)
			}
			got++
		}
		if got != n {
			t.Errorf("%d pages: got %d", n, got)
		}
	}
}
