"""From a recipe to a run: fit, resume, evaluate.

How a task plugs in
===================
The engine owns the Trainer, the run directory, checkpoints, resume, logs and the learning curve. It knows
a task only through `crossformerpp.tasks.plug`. A new task, say detection, brings:

1. `recipes/detection.py`: `DetectionRecipe(BaseRecipe)` with `task: Literal["detection"]`, a `data` section
   (its `root` is what `--data FOLDER` sets) and sections of its own; added to the union in `recipes/load.py`.
   Pages go to `recipes/<folder>/<name>.yaml` and are called `<folder>/<name>` on the command line.
2. `data/…`: map-style data sets that know no recipe, only plain arguments. `__getitem__` may be random; the
   engine seeds torch, numpy and `random` around it from (seed, epoch, index). Never keep state in a data set.
3. `tasks/detection/` (or one file): an object with the three methods of `plug.Task`, returned by
   `plug.find_task` under its name:

   - `split(recipe, "train" | "val", class_names)` → `data.split.Split` (data set, class names, collate,
     groups);
   - `module(recipe, class_names)` → a subclass of `tasks.module.TaskModule`, which has the optimiser, the
     schedule and the EMA already and asks for three methods: `loss(batch)` → dict with "loss" and parts to
     log, `evaluate_batch(model, batch)` which adds to metrics, `evaluation()` which sums them up over all
     processes (exactly: every sample counts once) as a `plug.Evaluation`, and forgets them. Its class
     attributes `monitor` and `monitor_mode` name the metric that chooses the best checkpoint;
   - `predictor(saved)` → a `plug.Predictor`: image → `plug.Prediction` (table rows, JSON, pictures).

Pictures are drawn by the task, with `crossformerpp.analysis` (pictures of matplotlib, annotation by Pillow).
A module must not draw random numbers outside `loss`, and must do so from torch's, numpy's or `random`'s
global generators only: the engine seeds them before every batch from (seed, rank, batch number), which is
why a resumed run continues bit for bit and no generator state is stored.

Training is one stream of batches, numbered from 0 over the whole run; "epoch" is the quotient of that number
and the batches in an epoch. Both iteration-based and epoch-based recipes are this stream, and resuming is
starting it at another number.
"""
