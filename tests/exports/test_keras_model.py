"""Keras predicts what the model predicts; weights of Keras models come back to the bit."""

import numpy as np
import pytest
import stacks
from export_stacks import assert_close, images_for, models, small_model
from hypothesis import given
from levels import examples

from minicnn import BatchNormalization, Conv2D, Dense, Dropout, Flatten, Sequential, mnist_cnn
from minicnn.exports import from_keras, save_keras, to_keras


def check_keras(keras, model, path):
    images = images_for(model)
    expected = model.predict(images)
    save_keras(model, path)
    found = keras.saving.load_model(path).predict(images, verbose=0)
    assert_close(found, expected.mean(axis=0))
    save_keras(model, path, each_net=True)
    found = keras.saving.load_model(path).predict(images, verbose=0)
    assert_close(found, expected.swapaxes(0, 1))


@pytest.mark.full(but="^(?!seed)")  # README's example is the seed network
def test_keras_predicts_the_same(keras, model, tmp_path):
    check_keras(keras, model, tmp_path / "model.keras")


@pytest.mark.full(beside="test_keras_predicts_the_same")
@examples(30)
@given(model=models())
def test_keras_predicts_the_same_for_drawn_stacks(keras, tmp_path_factory, model):
    check_keras(keras, model, tmp_path_factory.mktemp("drawn") / "model.keras")


def test_where_a_user_of_keras_has_the_channels_does_not_matter(keras, tmp_path):
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    try:
        check_keras(keras, stacks.small("numpy", nets=2), tmp_path / "model.keras")
    finally:
        keras.config.set_image_data_format(before)


def test_weights_come_back_from_keras_to_the_bit(keras, seed_network):
    nets = to_keras(seed_network)
    assert [net.name for net in nets] == ["net_3", "net_4"]
    stacks.assert_same(from_keras(nets), seed_network.get_weights())
    one = [array[1:] for array in seed_network.get_weights()]
    stacks.assert_same(from_keras(nets[1]), one)
    fresh = mnist_cnn(nets=2, device="numpy")
    fresh.set_weights(from_keras(nets))
    images = images_for(fresh)
    np.testing.assert_array_equal(fresh.predict(images), seed_network.predict(images))


def test_the_weights_of_a_model_that_keras_trained(keras):
    """A functional model from Keras's own layers, after a step of training."""
    layers = keras.layers
    images = keras.Input((9, 8, 2))
    y = layers.Conv2D(3, 4, strides=2, padding="same", activation="relu")(images)
    y = layers.BatchNormalization()(y)
    y = layers.Dropout(0.5)(layers.Flatten()(y))
    theirs = keras.Model(images, layers.Dense(4, activation="softmax")(y))
    theirs.compile("adam", "sparse_categorical_crossentropy")
    ours = Sequential(
        [
            Conv2D(3, 4, strides=2, padding="same", activation="relu"),
            BatchNormalization(),
            Flatten(),
            Dropout(0.5),
            Dense(4, "softmax"),
        ],
        (9, 8, 2),
        device="numpy",
    )
    x = images_for(ours, 8)
    theirs.fit(x, np.arange(8) % 4, verbose=0)
    ours.set_weights(from_keras(theirs))
    assert_close(ours.predict(x)[0], theirs.predict(x, verbose=0))


def test_models_of_keras_that_differ_are_refused(keras):
    def net(*layers):
        return keras.Sequential([keras.Input((3,)), *layers])

    one = net(keras.layers.Dense(4))
    with pytest.raises(ValueError, match=r"^models: .* weight 0 .* 1: got \(3, 5\), .* \(3, 4\)"):
        from_keras([one, net(keras.layers.Dense(5))])
    with pytest.raises(ValueError, match=r"^models: layer 1 .* 1: got Dropout, expected none"):
        from_keras([one, net(keras.layers.Dense(4), keras.layers.Dropout(0.5))])


@pytest.mark.parametrize("models", [[], 3, [None], [np.zeros(3)]])
def test_what_is_no_model_of_keras_is_refused(models):
    with pytest.raises(ValueError, match=r"^models: got .*, expected .*Keras model$"):
        from_keras(models)


def test_a_name_that_keras_does_not_load_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model\.h5: expected a name that ends in \.keras"):
        save_keras(small_model(), tmp_path / "model.h5")
