package pfn

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
)

// TestOldestOfAllParts: whatever part a frame is of, pages are taken and written in the order in which they came to their
// lists, the lowest priority first.
func TestOldestOfAllParts(t *testing.T) {
	const n = 64
	var gave []uint64
	d := newTest(t, n, func(owner, _ uint64, _ Departure) { gave = append(gave, owner) })
	random := rand.New(rand.NewPCG(1, 2))
	frames := make(map[uint64]Frame)
	d.Lock()
	defer d.Unlock()
	for owner := uint64(1); owner <= n; owner++ {
		f, _ := d.Alloc(Part(random.IntN(Parts)), owner, 0, false, 0)
		d.MakeValid(f)
		d.SetDirty(f)
		d.Unpin(f)
		frames[owner] = f
	}
	order := random.Perm(n)
	for _, i := range order {
		f := frames[uint64(i)+1]
		d.SetPriority(f, uint8(2+i%2))
		d.Trim(f)
		d.Tick()
	}
	var want []uint64
	for k, i := range order {
		age := uint32(n - k)
		if f := d.NextModified(age + 1); f != 0 {
			t.Fatalf("frame %d has been Modified for longer than %d ticks", f, age)
		}
		f := d.NextModified(age)
		if o := d.Info(f).Owner; o != uint64(i)+1 {
			t.Fatalf("page %d is written next, want %d", o, i+1)
		}
		d.EndWrite(f, 1000+uint64(i))
		d.mustCheck(t)
	}
	for _, odd := range []int{0, 1} {
		for _, i := range order {
			if i%2 == odd {
				want = append(want, uint64(i)+1)
			}
		}
	}
	for range n / 2 {
		if f, _ := d.Alloc(0, 99, 0, false, 0); f == 0 {
			t.Fatal("no frame")
		}
	}
	d.PurgeStandby(0, 7)
	if got, want := fmt.Sprint(gave), fmt.Sprint(want); got != want {
		t.Errorf("pages went in the order\n%v, want\n%v", got, want)
	}
	d.mustCheck(t)
}

// TestCheckFinds damages what parts have of their own, one thing at a time, and expects Check to say so.
//
// +checklocksignore
func TestCheckFinds(t *testing.T) {
	for _, c := range []struct {
		damage string
		do     func(d *Database, standby, modified, active Frame)
		want   string
	}{
		{"nothing", func(*Database, Frame, Frame, Frame) {}, ""},
		{"a standby frame is another part's", func(d *Database, f, _, _ Frame) { d.entries[f].part = 3 }, "on a list of part 2, but of part 3"},
		{"a modified frame is another part's", func(d *Database, _, f, _ Frame) { d.entries[f].part = 3 }, "on a list of part 2, but of part 3"},
		{"an active frame is another part's", func(d *Database, _, _, f Frame) { d.entries[f].part = 3 }, "part 3: counted 1 active"},
		{"there is no such part", func(d *Database, _, _, f Frame) { d.entries[f].part = Parts }, "of part 8"},
		{"an active frame is not counted", func(d *Database, _, _, _ Frame) {
			d.parts[2].active-- // +checklocksignore
		}, "active"},
		{"a soft fault is lost", func(d *Database, f, _, _ Frame) { d.entries[f].state = Active }, "in state Active"},
		{"standby is miscounted", func(d *Database, _, _, _ Frame) {
			d.parts[2].standing++ // +checklocksignore
		}, "on standby, counted"},
		{"a list is out of order", func(d *Database, f, _, _ Frame) {
			d.entries[f].when, d.entries[d.entries[f].next].when = 5, 4
		}, "out of order"},
		{"a frame came in the future", func(d *Database, _, f, _ Frame) {
			d.entries[f].when = d.clock // +checklocksignore
		}, "out of order"},
	} {
		d := newTest(t, 8, nil)
		d.Lock()
		var f [4]Frame
		for i := range f {
			f[i], _ = d.Alloc(2, uint64(i)+1, 10, false, 0)
			d.MakeValid(f[i])
			d.Unpin(f[i])
		}
		d.Trim(f[0])
		d.Trim(f[1])
		d.SetDirty(f[2])
		d.Trim(f[2])
		c.do(d, f[0], f[2], f[3])
		var found []string
		for _, err := range d.Check() {
			found = append(found, err.Error())
		}
		d.Unlock()
		if all := strings.Join(found, "\n"); (c.want == "") != (all == "") || !strings.Contains(all, c.want) {
			t.Errorf("%s: found %q, want %q", c.damage, all, c.want)
		}
	}
}

// TestParts has some threads take soft faults with parts of the lock alone, while others trim, write out and take frames
// with all of it. Check must hold at any moment, and every pin and every fault be counted at the end.
func TestParts(t *testing.T) {
	eachProcessorCount(t, testParts)
}

// +checklocksignore
func testParts(t *testing.T) {
	const (
		pages   = 16 // of each part
		frames  = Parts * pages * 3 / 4
		rounds  = 2000
		workers = 2 * Parts
	)
	type page struct {
		frame    Frame
		location uint64
	}
	var table [Parts * pages]page // one's part of the lock guards it
	d := newTest(t, frames, nil)
	d.restore = func(owner, original uint64, _ Departure) { table[owner-1] = page{0, original} }
	var slots uint64 // handed out; PFN lock

	// hard makes a page valid that has no frame.
	hard := func(i int) {
		d.Lock()
		defer d.Unlock()
		if p := &table[i]; p.frame == 0 {
			f, _ := d.Alloc(Part(i/pages), uint64(i)+1, p.location, true, 0)
			if f == 0 {
				return
			}
			p.frame = f
			d.MakeValid(f)
			if p.location == 0 {
				d.SetDirty(f)
			}
			d.Unpin(f)
		}
	}
	steps := []func(random *rand.Rand){
		func(random *rand.Rand) { hard(random.IntN(len(table))) },
		func(random *rand.Rand) { // trim
			d.Lock()
			defer d.Unlock()
			for i := range table {
				if f := table[i].frame; f != 0 && d.Info(f).State == Active && random.IntN(3) > 0 {
					d.SetPriority(f, uint8(random.IntN(Priorities)))
					d.Trim(f)
				}
			}
		},
		func(random *rand.Rand) { // write out
			for range 8 {
				d.Lock()
				f := d.NextModified(0)
				slots++
				slot := slots
				d.Unlock()
				if f == 0 {
					return
				}
				d.Lock()
				d.EndWrite(f, slot)
				d.Unlock()
			}
		},
		func(random *rand.Rand) { // delete
			d.Lock()
			defer d.Unlock()
			if p := &table[random.IntN(len(table))]; p.frame != 0 {
				d.Release(p.frame)
				*p = page{}
			}
		},
		func(random *rand.Rand) {
			d.Lock()
			defer d.Unlock()
			d.Tick()
			for _, err := range d.Check() {
				t.Error(err)
			}
		},
	}
	var done, wg sync.WaitGroup
	stop := make(chan struct{})
	for s, step := range steps {
		done.Go(func() {
			for random := rand.New(rand.NewPCG(1, uint64(s))); ; {
				select {
				case <-stop:
					return
				default:
					step(random)
				}
			}
		})
	}
	var softs, touches [workers]int
	for w := range workers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(2, uint64(w)))
			part := Part(w % Parts)
			var held []Frame
			for range rounds {
				i := int(part)*pages + random.IntN(pages)
				h := d.LockPart(part)
				f := table[i].frame
				if f != 0 {
					soft, _, ok := d.TouchPart(part, f, DefaultPriority)
					if ok {
						held = append(held, f)
						touches[w]++
					}
					if soft {
						softs[w]++
					}
				}
				d.UnlockPart(h)
				if f == 0 {
					hard(i)
				}
				if len(held) < 3 {
					continue
				}
				h = d.LockPart(part)
				all := d.UnpinPart(part, held)
				d.UnlockPart(h)
				if !all {
					d.Lock()
					for _, f := range held {
						if f != 0 {
							d.Unpin(f)
						}
					}
					d.Unlock()
				}
				held = held[:0]
			}
			d.Lock()
			for _, f := range held {
				d.Unpin(f)
			}
			d.Unlock()
		})
	}
	wg.Wait()
	close(stop)
	done.Wait()
	d.Lock()
	defer d.Unlock()
	d.mustCheck(t)
	for f := Frame(1); f <= frames; f++ {
		if i := d.Info(f); i.Refs != 0 || i.State == Transition {
			t.Errorf("at the end, frame %d: %+v", f, i)
		}
	}
	var soft, touched int
	for w := range workers {
		soft += softs[w]
		touched += touches[w]
	}
	if soft == 0 || soft == touched {
		t.Errorf("%d of %d touches were soft faults", soft, touched)
	}
}
