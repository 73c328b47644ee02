package ctl

import (
	"sync/atomic"
	"time"
)

// histogramBounds are the upper bounds of a Histogram's buckets; what takes longer is in one more.
var histogramBounds = [...]time.Duration{
	10 * time.Microsecond, 30 * time.Microsecond, 100 * time.Microsecond, 300 * time.Microsecond,
	time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond, 30 * time.Millisecond,
	100 * time.Millisecond, 300 * time.Millisecond, time.Second,
}

// Histogram counts durations. It has no lock; the zero value is empty.
type Histogram struct {
	counts [len(histogramBounds) + 1]atomic.Uint64
	sum    atomic.Int64
}

// Add counts one.
func (h *Histogram) Add(d time.Duration) {
	i := 0
	for i < len(histogramBounds) && d > histogramBounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(int64(d))
}

// Timing is what took the time of a Histogram.
type Timing struct {
	Name string
	*Histogram
}
